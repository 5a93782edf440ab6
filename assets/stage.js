// The race: numbers into their slots, bars to their length, and texts that grow without being redrawn.
(() => {
  const tda = (window.tda ??= {});
  const NEAR_END = 40; // pixels from the end that still count as following it

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

    write(text, part) {
      const following = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR_END;
      if (this.part === null && part === null && text.startsWith(this.node.data)) {
        if (text.length > this.node.data.length) this.node.appendData(text.slice(this.node.data.length));
      } else if (part !== this.part || text !== this.text) {
        this.rewrite(text, part);
      }
      if (!text) this.box.scrollTop = 0;
      else if (following) this.box.scrollTop = part === null ? this.box.scrollHeight : this.placeOfParting();
      this.text = text;
      this.part = part;
    }

    placeOfParting() {
      return this.box.querySelector(".parting-mark").offsetTop - this.box.offsetTop - 60;
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

  tda.stage = (element, props, watch) => {
    const root = element.querySelector(".stage");
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
      root.dataset.phase = value.phase;
      tda.fill(root, value.slots);
      for (const { name, pane, run, mark } of arms) {
        const { share, mark: at } = value.track[name];
        run.style.transform = `scaleX(${share})`;
        mark.hidden = at === null;
        mark.style.left = `${100 * (at ?? 0)}%`;
        pane.write(value.texts[name].text, value.texts[name].part);
      }
    };
    draw();
    watch("value", draw);
  };
})();
