// Text goes into the page here, and only as text.
(() => {
  const tda = (window.tda ??= {});

  const NONE = "–"; // what stands for a number that is not known yet

  // Fills every [data-slot] below `element` from `values`; touches only what changed.
  tda.fill = (element, values) => {
    for (const slot of element.querySelectorAll("[data-slot]")) {
      const text = values[slot.dataset.slot] ?? "";
      if (slot.textContent === text) continue;
      slot.textContent = text;
      slot.classList.toggle("not-known", text === NONE);
    }
  };

  tda.notice = (element, props, watch) => {
    const root = element.querySelector(".notice");
    const bar = root.querySelector(".bar i");
    const draw = () => {
      const { text = "", tone = "quiet", progress = null } = props.value ?? {};
      root.dataset.tone = tone;
      root.dataset.loading = progress !== null;
      bar.style.width = `${100 * (progress ?? 0)}%`;
      tda.fill(root, { text });
      if (tone === "error") tda.raceRefused?.();
    };
    draw();
    watch("value", draw);
  };

  tda.facts = (element, props, watch) => {
    const list = element.querySelector(".facts");
    const draw = () => {
      list.replaceChildren(
        ...(props.value || []).map(([name, value]) => {
          const pair = document.createElement("div");
          for (const [tag, text] of [["dt", name], ["dd", value]]) {
            pair.appendChild(document.createElement(tag)).textContent = text;
          }
          return pair;
        }),
      );
    };
    draw();
    watch("value", draw);
  };
})();
