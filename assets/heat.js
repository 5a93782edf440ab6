// The heatmap: one canvas, a pixel a cell, drawn anew whenever a column comes; and one slider a layer beside it.
(() => {
  const tda = (window.tda ??= {});
  // Cividis, and a diverging scale around the layer's mean: colour-blind safe both.
  const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
  const DIVERGING = ["#2166ac", "#67a9cf", "#b8d5e6", "#eeeeee", "#f6c7a4", "#e08a4e", "#b35806"];
  const SPREAD = 0.15; // share of a layer's neurons either way of its mean that the diverging scale spans

  const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const table = (colours) => {
    const stops = colours.map(channels);
    const pixels = new Uint32Array(256);
    for (let level = 0; level < 256; level++) {
      const at = (level / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(at), stops.length - 2);
      const [r, g, b] = stops[low].map((from, i) => Math.round(from + (at - low) * (stops[low + 1][i] - from)));
      pixels[level] = (255 << 24) | (b << 16) | (g << 8) | r; // as ImageData has them on little-endian machines
    }
    return pixels;
  };
  const TABLES = { share: table(CIVIDIS), difference: table(DIVERGING) };
  const GRADIENTS = { share: CIVIDIS, difference: DIVERGING };

  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Uint16Array(bytes.buffer);
  };
  // The prompt's own quantiles of every layer's scores.
  const unpackScores = ({ scores: { of, largest, levels }, d_ff }) => {
    const all = unpack(levels);
    const each = all.length / d_ff.length;
    return { evidence: of, scores: largest.map((top, layer) => Array.from(all.subarray(layer * each, (layer + 1) * each), (level) => (level / 65535) * top)) };
  };
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
  const number = (value) => Math.round(value).toLocaleString("en");

  // The counts of a race, column by column; what has been unpacked is kept.
  class Counts {
    constructor(value) {
      this.layers = value.d_ff.length;
      this.prompt = value.prompt;
      const counts = unpack(value.prompt);
      this.columns = Array.from({ length: counts.length / this.layers }, (_, at) => counts.subarray(at * this.layers, (at + 1) * this.layers));
      this.promptColumns = this.columns.length;
      this.means = value.d_ff.map((_, layer) => this.columns.reduce((sum, column) => sum + column[layer], 0) / Math.max(1, this.promptColumns));
    }

    take(columns) {
      for (let at = this.columns.length - this.promptColumns; at < columns.length; at++) this.columns.push(unpack(columns[at]));
    }
  }

  tda.heat = (root, onStep) => {
    const canvas = root.querySelector(".map canvas");
    const context = canvas.getContext("2d");
    const marks = root.querySelector(".marks canvas");
    const marksContext = marks.getContext("2d");
    const marksName = root.querySelector(".marks-name");
    const [divider, cursor, ghost] = [".divider", ".column", ".ghost"].map((name) => root.querySelector(name));
    const tip = root.querySelector(".tip");
    const who = root.querySelector(".heat-who");
    const rows = tda.rows(root);
    const view = root.querySelector(".view");
    const [low, high] = ["low", "high"].map((end) => root.querySelector(`[data-scale=${end}]`));
    const gradient = root.querySelector(".scale i");
    let value = null;
    let counts = null;
    let image = null;
    let pixels = null;
    let drawn = 0; // columns that are in the image
    let at = { column: -1, layer: 0 };

    const begin = () => {
      counts = new Counts(value);
      canvas.width = counts.promptColumns + value.room;
      canvas.height = counts.layers;
      image = context.createImageData(canvas.width, canvas.height);
      pixels = new Uint32Array(image.data.buffer);
      drawn = 0;
      divider.style.left = `${(100 * counts.promptColumns) / canvas.width}%`;
      root.style.setProperty("--prompt-share", counts.promptColumns / canvas.width);
      marks.width = value.room;
      marks.height = 1;
      legend();
    };
    const legend = () => {
      const mode = root.dataset.view;
      gradient.style.background = `linear-gradient(90deg, ${GRADIENTS[mode].join(", ")})`;
      low.textContent = mode === "share" ? percent(value?.low ?? 0) : `−${percent(SPREAD)}`;
      high.textContent = mode === "share" ? percent(value?.high ?? 1) : `+${percent(SPREAD)}`;
    };
    const paintColumns = () => {
      const { layers, columns, means } = counts;
      const share = root.dataset.view === "share";
      const colours = TABLES[root.dataset.view];
      const width = canvas.width;
      const span = value.high - value.low;
      for (let column = drawn; column < columns.length && column < width; column++) {
        for (let layer = 0; layer < layers; layer++) {
          const part = columns[column][layer] / value.d_ff[layer];
          const level = share ? (part - value.low) / span : 0.5 + (part - means[layer] / value.d_ff[layer]) / (2 * SPREAD);
          pixels[layer * width + column] = colours[level <= 0 ? 0 : level >= 1 ? 255 : (level * 255) | 0];
        }
      }
      const first = drawn;
      drawn = Math.min(columns.length, width);
      if (drawn > first) context.putImageData(image, 0, 0, first, 0, drawn - first, layers);
    };
    const paintMarks = () => {
      const style = getComputedStyle(root);
      marksContext.clearRect(0, 0, marks.width, 1);
      for (const [mark, colour] of [["1", "--same"], ["0", "--differs"]]) {
        marksContext.fillStyle = style.getPropertyValue(colour);
        for (let at = 0; at < value.marks.length; at++) if (value.marks[at] === mark) marksContext.fillRect(at, 0, 1, 1);
      }
    };
    let marked = "";
    const draw = (next) => {
      if (next?.scores && next.scores.levels !== value?.scores?.levels) tda.preview?.read(unpackScores(next));
      const same = next && counts && next.prompt === counts.prompt && next.room === value.room && next.d_ff.length === counts.layers && next.columns.length >= counts.columns.length - counts.promptColumns;
      value = next;
      ghost.hidden = Boolean(value);
      root.dataset.empty = !value;
      who.textContent = value ? `${value.name}: kept per layer` : "Kept per layer";
      rows.measured(value);
      if (!value) {
        counts = null;
        canvas.width = marks.width = 1;
        return;
      }
      if (!same) {
        begin();
        marked = "";
      }
      counts.take(value.columns);
      paintColumns();
      marksName.textContent = counts.promptColumns ? "same next token as dense" : "";
      if (value.marks !== marked) paintMarks();
      marked = value.marks;
      marks.style.visibility = marked ? "" : "hidden"; // its place is known once the prompt has been read
      canvas.setAttribute("aria-label", `Neurons fired: ${counts.layers} layers by ${counts.promptColumns} prompt tokens and ${value.columns.length} written ones. Arrow keys read single cells.`);
    };

    const told = () => {
      const { column, layer } = at;
      const inPrompt = column < counts.promptColumns;
      const total = value.d_ff[layer];
      const fired = counts.columns[column][layer];
      const computed = inPrompt ? total : (value.kept?.[layer] ?? fired);
      const step = column - counts.promptColumns;
      const token = inPrompt ? `prompt token ${column + 1 + value.hidden} “${value.prompt_tokens[column]}”` : `written token ${step + 2}`;
      return `layer ${layer}, ${token}: ${number(fired)} of ${number(total)} fired (${percent(fired / total)})${inPrompt ? "" : `, ${number(computed)} computed`}`;
    };
    const point = (column, layer = at.layer) => {
      if (!counts || column < 0 || column >= counts.columns.length) {
        cursor.hidden = true;
        tip.textContent = "";
        at = { column: -1, layer: 0 };
        return onStep(null);
      }
      at = { column, layer: Math.max(0, Math.min(counts.layers - 1, layer)) };
      cursor.hidden = false;
      cursor.style.left = `${(100 * column) / canvas.width}%`;
      cursor.style.width = `max(2px, ${100 / canvas.width}%)`;
      tip.textContent = told();
      onStep(column >= counts.promptColumns ? column - counts.promptColumns : null);
    };
    const placeOf = ({ clientX, clientY }) => {
      const box = canvas.getBoundingClientRect();
      return [Math.floor(((clientX - box.left) / box.width) * canvas.width), Math.floor(((clientY - box.top) / box.height) * canvas.height)];
    };
    canvas.addEventListener("pointermove", (event) => point(...placeOf(event)));
    canvas.addEventListener("pointerdown", (event) => point(...placeOf(event)));
    canvas.addEventListener("pointerleave", () => point(-1));
    canvas.addEventListener("blur", () => point(-1));
    const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e6, 0], End: [1e6, 0] };
    canvas.addEventListener("keydown", (event) => {
      if (!counts || !(event.key in MOVES)) return;
      event.preventDefault();
      const [across, down] = MOVES[event.key];
      const start = at.column < 0 ? counts.columns.length - 1 - across : at.column;
      point(Math.max(0, Math.min(counts.columns.length - 1, start + across)), at.layer + down);
    });
    view.addEventListener("click", () => {
      const pressed = view.getAttribute("aria-pressed") !== "true";
      view.setAttribute("aria-pressed", pressed);
      root.dataset.view = pressed ? "difference" : "share";
      legend();
      drawn = 0;
      if (counts) paintColumns();
    });
    new MutationObserver(() => value && paintMarks()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    legend();
    // A step of the sparse arm, pointed at from its text.
    return { draw, point: (step) => point(step >= 0 && counts ? counts.promptColumns + step : -1) };
  };
})();
