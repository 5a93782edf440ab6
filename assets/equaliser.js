// One vertical slider per layer; one tab stop for all of them.
(() => {
  const tda = (window.tda ??= {});
  const MOVES = { ArrowLeft: -1, ArrowRight: 1 };

  tda.equaliser = (element, props, watch) => {
    const root = element.querySelector(".equaliser");
    const group = root.querySelector(".sliders");
    const output = root.querySelector("output");
    const sliders = () => [...group.querySelectorAll("input")];
    const factors = () => sliders().map((slider) => Number(slider.value));

    const describe = (slider) => {
      slider.setAttribute("aria-valuetext", `times ${Number(slider.value).toFixed(2)}`);
      slider.closest("label").dataset.changed = Number(slider.value) !== 1;
    };
    const tell = (slider) => (output.textContent = `Layer ${slider.dataset.layer}: × ${Number(slider.value).toFixed(2)}`);
    const makeStop = (stop) => sliders().forEach((slider) => (slider.tabIndex = slider === stop ? 0 : -1));

    const build = (layer) => {
      const label = document.createElement("label");
      const slider = label.appendChild(document.createElement("input"));
      Object.assign(slider, { type: "range", min: 0, max: 2, step: 0.05, value: 1, tabIndex: layer ? -1 : 0 });
      slider.dataset.layer = layer;
      slider.setAttribute("aria-label", `Layer ${layer}`);
      slider.setAttribute("aria-orientation", "vertical");
      label.appendChild(document.createElement("span")).textContent = layer;
      return label;
    };
    const draw = () => {
      const value = props.value || [];
      root.dataset.empty = value.length === 0;
      if (sliders().length !== value.length) group.replaceChildren(...value.map((_, layer) => build(layer)));
      sliders().forEach((slider, layer) => {
        slider.value = value[layer];
        describe(slider);
      });
      output.textContent = "";
    };

    group.addEventListener("input", ({ target }) => {
      describe(target);
      tell(target);
    });
    group.addEventListener("change", () => (props.value = factors()));
    group.addEventListener("focusin", ({ target }) => {
      makeStop(target);
      tell(target);
    });
    group.addEventListener("keydown", (event) => {
      const next = sliders()[Number(event.target.dataset.layer) + MOVES[event.key]];
      if (!(event.key in MOVES)) return;
      event.preventDefault();
      next?.focus();
    });
    root.querySelector("button").addEventListener("click", () => {
      props.value = factors().map(() => 1);
      draw();
    });
    draw();
    watch("value", draw);
  };
})();
