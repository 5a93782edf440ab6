// The race: numbers into their slots, bars to their length, and texts that grow without being redrawn.
(() => {
  const tda = (window.tda ??= {});
  const NEAR_END = 40; // pixels from the end that still count as following it
  const BEGUN = ["reading", "running", "judging"];
  const OVER = ["finished", "stopped"];

  const parting = () => {
    const mark = document.createElement("span");
    mark.className = "parting-mark";
    mark.setAttribute("role", "note");
    mark.textContent = "≠ texts part here";
    return mark;
  };

  // Keeps a pane's text nodes and appends to them, so that a selection and the scroll position survive.
  class Pane {
    constructor(box) {
      this.box = box;
      this.pieces = [];
      this.part = null;
      this.text = "";
      this.rewrite("", null);
    }

    get following() {
      return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR_END;
    }

    write(pieces, part) {
      const text = pieces.join("");
      this.pieces = pieces;
      if (part === null && this.part === null && text.startsWith(this.text)) {
        if (text.length > this.text.length) this.nodes[0].appendData(text.slice(this.text.length));
      } else if (part !== this.part || text !== this.text) {
        this.rewrite(text, part);
      }
      this.text = text;
      this.part = part;
    }

    scroll() {
      const mark = this.box.querySelector(".parting-mark");
      this.box.scrollTop = mark ? mark.offsetTop - this.box.offsetTop - this.box.clientHeight / 3 : this.box.scrollHeight;
    }

    rewrite(text, part) {
      const cut = part ?? text.length;
      this.nodes = [document.createTextNode(text.slice(0, cut)), document.createTextNode(text.slice(cut))];
      const rest = document.createElement("span");
      rest.className = "after-parting";
      rest.append(this.nodes[1]);
      this.box.replaceChildren(this.nodes[0], ...(part === null ? [] : [parting()]), rest);
    }

    // Where token `index` stands, as a range of the text; null where it has none.
    range(index) {
      if (!(index >= 0 && index < this.pieces.length)) return null;
      const start = this.pieces.slice(0, index).join("").length;
      const range = document.createRange();
      const cut = this.nodes[0].length;
      const place = (at) => (at <= cut ? [this.nodes[0], at] : [this.nodes[1], at - cut]);
      range.setStart(...(start < cut ? [this.nodes[0], start] : [this.nodes[1], start - cut]));
      range.setEnd(...place(start + this.pieces[index].length));
      return range;
    }

    // The token at a place of the text; -1 outside of it.
    tokenAt(node, offset) {
      const which = this.nodes.indexOf(node);
      if (which < 0) return -1;
      let left = offset + (which ? this.nodes[0].length : 0);
      return this.pieces.findIndex((piece) => (left -= piece.length) < 0);
    }
  }

  // A frame of a recorded race on top of the one before: only what changed, and of lists and long strings what is new.
  const merge = (old, change) => {
    if (change === null || typeof change !== "object" || Array.isArray(change)) return change;
    if ("$add" in change) return old.concat(change.$add);
    const merged = { ...old };
    for (const [key, value] of Object.entries(change)) merged[key] = merge(old?.[key], value);
    return merged;
  };

  // As if it had begun at the time `begun`; frames that are overdue are passed over.
  const replay = ({ frames, seconds }, first, begun, show) => {
    let value = first;
    let timer = 0;
    const left = (index) => begun + 1000 * frames[index].at * seconds - performance.now();
    const step = (index) => {
      do value = merge(value, frames[index++].change);
      while (index < frames.length && left(index) <= 0);
      show(value);
      if (index < frames.length) timer = setTimeout(step, left(index), index);
    };
    step(0);
    return () => clearTimeout(timer);
  };

  const lightUp = (range) => {
    if (!window.CSS?.highlights) return;
    if (range) CSS.highlights.set("tda-token", new Highlight(range));
    else CSS.highlights.delete("tda-token");
  };

  tda.stage = (element, props, watch) => {
    tda.leaveEarly?.();
    const root = element.querySelector(".stage");
    const from = root.querySelector(".from");
    const remedy = root.querySelector(".remedy");
    const boards = [...root.querySelectorAll(".board")];
    const arms = ["dense", "sparse", "rival"].map((name) => {
      const lane = root.querySelector(`.lane[data-arm=${name}]`);
      const [run, mark] = [lane.querySelector(".run"), lane.querySelector(".mark")];
      return { name, pane: new Pane(root.querySelector(`.pane[data-arm=${name}] .text`)), run, mark };
    });
    const panes = Object.fromEntries(arms.map(({ name, pane }) => [name, pane]));
    // A column of the heatmap is a step of the sparse arm: it wrote the token after its first one.
    const heat = tda.heat(root.querySelector(".heat"), (step) => lightUp(step === null ? null : panes.sparse.range(step + 1)));
    const history = tda.history(root.querySelector(".history"), (past) => show(past));
    let stopReplay = () => {};
    let begun = (tda.replayBegan ??= performance.now()); // that of ``early.js``, where it has shown the race so far
    let shown = null;

    const paint = (value) => {
      const following = arms.filter(({ pane }) => pane.following); // read before anything is written: one layout
      root.dataset.phase = value.phase;
      root.dataset.duel = Boolean(value.duel);
      root.dataset.leader = value.leader ?? "";
      root.dataset.recorded = Boolean(value.slots.badge);
      for (const board of boards) {
        board.dataset.standing = value.standing?.[board.dataset.arm] ?? "";
        board.dataset.damaged = Boolean(value.damaged?.includes(board.dataset.arm));
      }
      tda.fill(root, value.slots);
      remedy.hidden = !value.remedy;
      remedy.textContent = value.remedy?.label ?? "";
      remedy.title = value.remedy?.why ?? "";
      for (const { name, pane, run, mark } of arms) {
        const { share, mark: at } = value.track[name];
        run.style.transform = `scaleX(${share})`;
        mark.hidden = at === null;
        mark.style.left = `${100 * (at ?? 0)}%`;
        pane.write(value.texts[name].pieces, value.texts[name].part);
      }
      following.forEach(({ pane }) => pane.scroll());
      heat.draw(value.heat ?? null);
    };

    const show = (value) => {
      const before = shown?.phase;
      shown = value;
      document.documentElement.toggleAttribute("data-racing", BEGUN.includes(value.phase));
      paint(value);
      if (OVER.includes(value.phase) && BEGUN.includes(before) && !value.replay) history.keep(value);
      tda.controls?.result(value.phase);
    };

    const draw = () => {
      const value = props.value;
      if (!value?.phase) return;
      stopReplay();
      if (value.replay) stopReplay = replay(value.replay, value, begun, paint);
      else show(value);
      if (value.replay) shown = value;
    };

    // What stands here is of other settings than those that are set now.
    const tellStale = (stale) => {
      const running = BEGUN.includes(shown?.phase) && !shown.replay;
      root.dataset.stale = stale && !running;
      from.hidden = !stale || shown?.phase === "empty";
      from.textContent = running ? "changes apply to the next race" : `from ${shown?.label || "the recorded race"}: run again`;
      from.disabled = running;
    };

    from.addEventListener("click", () => document.querySelector("button#run").click());
    remedy.addEventListener("click", () => shown.remedy && tda.controls.apply(shown.remedy.set));
    root.addEventListener("pointermove", ({ target, clientX, clientY }) => {
      if (!panes.sparse.box.contains(target)) return;
      const caret = document.caretPositionFromPoint?.(clientX, clientY);
      const token = caret ? panes.sparse.tokenAt(caret.offsetNode, caret.offset) : -1;
      heat.point(token - 1);
    });
    panes.sparse.box.addEventListener("pointerleave", () => heat.point(-1));
    tda.whenControls((controls) => controls.onStale(tellStale));
    // The recorded race makes room for the one asked for at once, while everybody looks; it returns where that is refused.
    tda.beginRace = () => {
      stopReplay();
      if (!shown?.replay) return;
      const nothing = Object.fromEntries(arms.map(({ name }) => [name, { pieces: [], part: null }]));
      const start = Object.fromEntries(arms.map(({ name }) => [name, { share: 0, mark: null }]));
      const duel = tda.controls?.values.rival !== "dense";
      paint({ phase: "asked", duel, slots: { lane: "Sparse", "rival.lane": "Rival" }, track: start, texts: nothing });
    };
    tda.raceRefused = () => {
      if (root.dataset.phase !== "asked") return;
      begun = performance.now();
      draw();
    };
    draw();
    watch("value", draw);
  };
})();
