// The plot of quality against cost: axes to choose, parts to switch off, a table, and everything to take away.
(() => {
  const tda = (window.tda ??= {});
  const GLYPHS = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", "triangle-down": "▼", cross: "✚" };
  const NOTES = {
    share: "The share is that of the row's own precision: what quantising saves does not show here.",
    rate: "Times of different machines do not compare; resting on a point names its machine.",
  };
  const NARROW = 520; // px: less has no room for an axis title in one line
  const RACE_NOTE = "A race has no perplexity of a given text: its star is not in this view.";

  const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);

  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (rows) => {
    const names = Object.keys(rows[0]);
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  };

  tda.pareto = (root, props, watch) => {
    const figure = root.querySelector(".pareto");
    const area = figure.querySelector(".plot-area");
    const canvas = figure.querySelector(".plot-canvas");
    const tip = figure.querySelector(".plot-tip");
    const table = figure.querySelector("table");
    const off = new Set();
    const everything = figure.querySelector("[data-whole]");
    let value = null;
    let whole = false;
    let pointed = null; // the legend's entry under the pointer: all that is not its own steps back

    figure.querySelectorAll("[data-axis]").forEach((axis) => axis.querySelectorAll("input").forEach((radio) => (radio.name = `pareto-${axis.dataset.axis}`)));
    const chosen = (axis) => figure.querySelector(`[data-axis=${axis}] input:checked`).value;
    const visible = ({ meta }) => Object.entries(meta).every(([group, key]) => !off.has(`${group} ${key}`));
    const seen = (trace) => (pointed && trace.meta[pointed.group] !== pointed.key ? { ...trace, opacity: 0.1 } : trace);
    const current = () => {
      const { data, layout, beyond } = tda.themed(value.views[`${chosen("quality")}/${chosen("cost")}`], getComputedStyle(figure));
      if (whole) delete layout.yaxis.range;
      if (area.offsetWidth < NARROW) layout.xaxis.title.text = layout.xaxis.title.text.replace(" (", "<br>(");
      return { data: data.filter(visible).map(seen), layout, beyond };
    };

    const draw = () => {
      figure.dataset.empty = !value;
      if (!value) return window.Plotly?.purge(canvas);
      if (!area.offsetWidth) return; // drawn once its tab is seen
      if (!window.Plotly) return tda.plotly().then(draw);
      const { data, layout, beyond } = current();
      const dragmode = matchMedia("(pointer: fine)").matches ? "zoom" : false;
      window.Plotly.react(canvas, data, { ...layout, dragmode, autosize: true, uirevision: `${chosen("quality")}/${chosen("cost")}/${whole}` }, { displayModeBar: false, responsive: true, doubleClick: "reset" });
      if (!canvas.listening) {
        canvas.listening = true;
        canvas.on("plotly_hover", showTip);
        canvas.on("plotly_unhover", () => (tip.hidden = true));
      }
      everything.hidden = !beyond;
      everything.textContent = whole ? "Show the lower part" : `${beyond} ${beyond === 1 ? "point lies" : "points lie"} above: show all`;
      const race = value.legend.source.some(({ key }) => key === "your last race") && chosen("quality") === "perplexity";
      tda.fill(figure, { note: [NOTES[chosen("cost")], race && RACE_NOTE].filter(Boolean).join(" ") });
    };
    const showTip = ({ points, event }) => {
      const lines = value.tips[points[0].customdata];
      if (!lines) return;
      tip.hidden = false;
      tip.replaceChildren(...lines.map((line) => element("div", line)));
      const box = area.getBoundingClientRect();
      const left = event.clientX - box.left + 14;
      tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth))}px`;
      tip.style.top = `${event.clientY - box.top + 16}px`;
    };

    const legend = () => {
      for (const fieldset of figure.querySelectorAll("[data-group]")) {
        const group = fieldset.dataset.group;
        const entries = value?.legend[group] ?? [];
        const labels = entries.map(({ key, label, colour, symbol }) => {
          const entry = document.createElement("label");
          const box = entry.appendChild(element("input", "", { type: "checkbox", checked: !off.has(`${group} ${key}`), className: "views-choice" }));
          box.addEventListener("change", () => {
            off[box.checked ? "delete" : "add"](`${group} ${key}`);
            draw();
          });
          const point = (at) => {
            pointed = at;
            draw();
          };
          entry.addEventListener("mouseenter", () => point({ group, key }));
          entry.addEventListener("mouseleave", () => point(null));
          if (colour) entry.appendChild(element("i", "")).style.background = colour;
          if (symbol) entry.appendChild(element("b", GLYPHS[symbol] ?? "●"));
          entry.appendChild(element("span", label));
          return entry;
        });
        const names = entries.map(({ key }) => `${group} ${key}`);
        fieldset.replaceChildren(fieldset.querySelector("legend"), ...labels, ...(names.length > 4 ? allAndNone(names, labels) : []));
      }
    };
    const allAndNone = (names, labels) =>
      ["all", "none"].map((word) => {
        const button = element("button", word, { type: "button", className: "text-button" });
        button.addEventListener("click", () => {
          names.forEach((name) => off[word === "all" ? "delete" : "add"](name));
          labels.forEach((label) => (label.querySelector("input").checked = word === "all"));
          draw();
        });
        return button;
      });
    const tabulate = () => {
      const { head = [], body = [] } = value?.table ?? {};
      const row = (cells, tag) => {
        const line = document.createElement("tr");
        line.append(...cells.map((cell) => element(tag, cell)));
        return line;
      };
      const top = document.createElement("thead");
      const rows = document.createElement("tbody");
      top.append(row(head, "th"));
      rows.append(...body.map((cells) => row(cells, "td")));
      table.replaceChildren(top, rows);
      figure.querySelector("summary").textContent = `Every point as a table (${body.length})`;
    };

    const picture = (format) => {
      const { data, layout } = current();
      const paper = getComputedStyle(figure).getPropertyValue("--paper").trim();
      const legend = { orientation: "h", y: -0.16 };
      const framed = { ...layout, showlegend: true, legend, paper_bgcolor: paper, plot_bgcolor: paper, margin: { l: 70, r: 30, t: 30, b: 60 } };
      return window.Plotly.downloadImage({ data, layout: framed }, { format, width: 1100, height: 720, scale: format === "png" ? 2 : 1, filename: "quality-and-cost" });
    };
    const SAVE = {
      svg: () => picture("svg"),
      png: () => picture("png"),
      csv: () => tda.save("quality-and-cost.csv", "text/csv", csv(value.rows)),
      json: () => tda.save("quality-and-cost.json", "application/json", JSON.stringify(value.rows, null, 1)),
    };

    let opened = false;
    const update = () => {
      pointed = null; // its entry is about to be made anew
      value = props.value?.views ? structuredClone(props.value) : null;
      if (value && !opened) {
        opened = true; // on one precision: the others are a click away
        value.legend.precision.filter(({ key }) => key !== value.opens).forEach(({ key }) => off.add(`precision ${key}`));
      }
      figure.querySelector("[data-verdict]").textContent = value?.verdict ?? "";
      figure.querySelectorAll("[data-save]").forEach((button) => (button.disabled = !value));
      legend();
      tabulate();
      draw();
    };
    update();
    watch("value", update);
    figure.querySelectorAll("[data-axis] input").forEach((radio) => radio.addEventListener("change", draw));
    figure.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => SAVE[button.dataset.save]()));
    everything.addEventListener("click", () => {
      whole = !whole;
      draw();
    });
    new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    new ResizeObserver(() => area.offsetWidth && (canvas.listening ? window.Plotly.Plots.resize(canvas) : draw())).observe(area);
  };
})();
