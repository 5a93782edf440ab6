// One plot that stays in the page: drawn once, then updated in place, in the colours of the theme. What nobody sees is
// not drawn before somebody does: until then the time belongs to the race, which may run on the same cores.
(() => {
  const tda = (window.tda ??= {});

  // Plotly is large: it is fetched when the first plot is seen. Its address is in a <meta> of the page's.
  let plotly = null;
  tda.plotly = () =>
    (plotly ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = document.querySelector("meta[name=tda-plotly]").content;
      script.addEventListener("load", () => resolve(window.Plotly));
      script.addEventListener("error", reject);
      document.head.appendChild(script);
    }));

  // "var(--x)" anywhere in a figure becomes the theme's colour of this moment.
  const themed = (node, style) => {
    if (typeof node === "string" && node.startsWith("var(")) return style.getPropertyValue(node.slice(4, -1)).trim();
    if (Array.isArray(node)) return node.map((item) => themed(item, style));
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, themed(item, style)]));
    }
    return node;
  };
  tda.themed = themed;

  const ARRAYS = { u1: Uint8Array, u2: Uint16Array };
  const decoded = ({ bdata, dtype }) => {
    const bytes = Uint8Array.from(atob(bdata), (c) => c.charCodeAt(0));
    return new ARRAYS[dtype](bytes.buffer);
  };

  const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;

  // What the tip says of a place in each kind of plot, line by line.
  const TIPS = (tda.tips ??= {});
  Object.assign(TIPS, {
    layers({ hover }, layer) {
      const total = hover.d_ff[layer];
      if (total === undefined) return null;
      const lines = [`layer ${layer}`, `kept ${hover.kept[layer].toLocaleString("en")} of ${total.toLocaleString("en")} neurons (${percent(hover.kept[layer], total)})`];
      if (hover.cett[layer] !== undefined) lines.push(`realised CETT ${hover.cett[layer].toFixed(3)}`);
      return lines;
    },
    neurons({ hover, views }, column, layer) {
      const width = hover.per_column;
      const first = column * width;
      if (hover.d_ff[layer] === undefined || column < 0 || first >= hover.d_ff[layer]) return null;
      const z = views.neurons.data[0].z;
      hover.shares ??= decoded(z);
      const share = hover.shares[layer * Number(z.shape.split(",")[1]) + column];
      if (width === 1) return [`layer ${layer}, neuron ${first}`, share ? "active: computed for every token" : "not active: skipped"];
      return [`layer ${layer}, neurons ${first}–${first + width - 1}`, `${Math.round((share * width) / 100)} of ${width} active`];
    },
  });

  tda.plot = (element, props, watch) => {
    const figure = element.querySelector(".plot");
    const area = figure.querySelector(".plot-area");
    const canvas = figure.querySelector(".plot-canvas");
    const tip = figure.querySelector(".plot-tip");
    const radios = [...figure.querySelectorAll("input[type=radio]")];
    const ghost = figure.querySelector(".plot-ghost");
    const promise = ghost.textContent;
    const title = canvas.getAttribute("aria-label");
    let value = null;
    let seen = false;
    let chosen = "";

    const draw = () => {
      if (value && !window.Plotly) return tda.plotly().then(draw);
      figure.toggleAttribute("data-due", false);
      figure.dataset.empty = !value;
      canvas.setAttribute("aria-label", value?.summary ? `${title}: ${value.summary}` : title);
      ghost.textContent = props.value?.ghost ?? promise;
      if (!value) {
        canvas.listening = false; // listeners go with the plot
        return window.Plotly?.purge(canvas);
      }
      chosen = radios.find((radio) => radio.checked)?.value ?? Object.keys(value.views)[0];
      const { data, layout } = themed(value.views[chosen], getComputedStyle(figure));
      window.Plotly.react(canvas, data, { ...layout, autosize: true }, { displayModeBar: false, responsive: true, doubleClick: false });
      if (!canvas.listening) {
        canvas.listening = true;
        canvas.on("plotly_hover", showTip);
        canvas.on("plotly_unhover", () => (tip.hidden = true));
      }
    };
    const showTip = ({ xvals, yvals, event }) => {
      const lines = TIPS[value.hover.kind](value, Math.round(xvals[0]), Math.round(yvals[0]), chosen);
      tip.hidden = !lines;
      if (!lines) return;
      tip.replaceChildren(
        ...lines.map((line) => {
          const row = document.createElement("div");
          row.textContent = line;
          return row;
        }),
      );
      const box = area.getBoundingClientRect();
      const left = event.clientX - box.left;
      tip.style.left = `${Math.max(0, Math.min(left + 12, box.width - tip.offsetWidth))}px`;
      tip.style.top = `${event.clientY - box.top + 14}px`;
    };
    const update = () => {
      value = props.value?.views ? structuredClone(props.value) : null;
      figure.toggleAttribute("data-due", true);
      if (seen) draw();
    };
    const drawDue = () => figure.hasAttribute("data-due") && draw();

    update();
    watch("value", update);
    new IntersectionObserver((entries) => {
      seen = entries.at(-1).isIntersecting && area.offsetWidth > 0;
      if (seen) drawDue();
    }).observe(area);
    window.addEventListener("beforeprint", drawDue);
    radios.forEach((radio) => radio.addEventListener("change", draw));
    // A plot drawn while its tab was hidden had no size.
    new ResizeObserver(() => canvas.listening && area.offsetWidth && window.Plotly.Plots.resize(canvas)).observe(area);
    new MutationObserver(() => canvas.listening && draw()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  };
})();
