// The race: numbers into their slots, bars to their length, and texts that grow without being redrawn.
(() => {
  const tda = (window.tda ??= {});
  const NEAR_END = 40; // pixels from the end that still count as following it
  const MARGIN = 14; // pixels between the race and the window's edge

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
      this.node = box.appendChild(document.createTextNode(""));
      this.part = null;
    }

    get following() {
      return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR_END;
    }

    write(text, part) {
      if (this.part === null && part === null && text.startsWith(this.node.data)) {
        if (text.length > this.node.data.length) this.node.appendData(text.slice(this.node.data.length));
      } else if (part !== this.part || text !== this.text) {
        this.rewrite(text, part);
      }
      this.text = text;
      this.part = part;
    }

    scroll() {
      const mark = this.box.querySelector(".parting-mark");
      this.box.scrollTop = mark ? mark.offsetTop - this.box.offsetTop - 60 : this.box.scrollHeight;
    }

    rewrite(text, part) {
      this.node = document.createTextNode(part === null ? text : text.slice(0, part));
      if (part === null) return this.box.replaceChildren(this.node);
      const rest = document.createElement("span");
      rest.className = "after-parting";
      rest.textContent = text.slice(part);
      this.box.replaceChildren(this.node, parting(), rest);
    }
  }

  const RACING = ["reading", "running"];

  // Brings the lanes and the texts into view, as far as both fit.
  const bringIntoView = (track, panes) => {
    const end = panes.getBoundingClientRect().bottom - window.innerHeight;
    const top = Math.min(end, track.getBoundingClientRect().top) + MARGIN;
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (top > MARGIN) window.scrollBy({ top, behavior: calm ? "instant" : "smooth" });
  };

  tda.stage = (element, props, watch) => {
    const root = element.querySelector(".stage");
    const lead = root.querySelector(".lead");
    const boards = [...root.querySelectorAll(".scoreboard")];
    const arms = ["dense", "sparse", "rival"].map((name) => {
      const lane = root.querySelector(`.lane[data-arm=${name}]`);
      return {
        name,
        pane: new Pane(root.querySelector(`.pane[data-arm=${name}] .text`)),
        run: lane.querySelector(".run"),
        mark: lane.querySelector(".mark"),
      };
    });
    const draw = () => {
      const value = props.value;
      if (!value?.phase) return;
      const begins = RACING.includes(value.phase) && !RACING.includes(root.dataset.phase);
      const following = arms.filter(({ pane }) => pane.following); // read before anything is written: one layout
      root.dataset.phase = value.phase;
      lead.dataset.arm = value.leader ?? "";
      for (const board of boards) board.dataset.undecided = value.undecided.includes(board.dataset.arm);
      tda.fill(root, value.slots);
      for (const { name, pane, run, mark } of arms) {
        const { share, mark: at } = value.track[name];
        run.style.transform = `scaleX(${share})`;
        mark.hidden = at === null;
        mark.style.left = `${100 * (at ?? 0)}%`;
        pane.write(value.texts[name].text, value.texts[name].part);
      }
      following.forEach(({ pane }) => pane.scroll());
      if (begins) bringIntoView(root.querySelector(".race-track"), root.querySelector(".panes"));
    };
    draw();
    watch("value", draw);
  };
})();
