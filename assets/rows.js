// One slider a layer beside the heatmap: how much of it is kept, and for TDA a threshold of its own to drag.
// Left and right set it, up and down move between layers, shift takes a range along, double click and Delete reset.
(() => {
  const tda = (window.tda ??= {});
  const STEP = 2; // percent of a layer's neurons, by key

  tda.rows = (root) => {
    const group = root.querySelector(".rows");
    const editor = root.querySelector(".row-editor");
    const [editorName, editorRange] = [editor.querySelector("span"), editor.querySelector("input")];
    const tip = root.querySelector(".tip");
    let rows = [];
    let from = null; // where a range began
    let dragging = false;
    let pressed = -1; // the layer of the last press

    const build = (layers) => {
      rows = Array.from({ length: layers }, (_, layer) => {
        const row = document.createElement("div");
        row.className = "layer-row";
        row.tabIndex = layer ? -1 : 0;
        row.dataset.layer = layer;
        row.setAttribute("role", "slider");
        row.setAttribute("aria-label", `Layer ${layer}, kept share`);
        row.setAttribute("aria-valuemin", 0);
        row.setAttribute("aria-valuemax", 100);
        row.setAttribute("aria-valuenow", 100);
        if (layer % 5 === 0) row.dataset.name = layer;
        row.append(document.createElement("i"), document.createElement("b"));
        return row;
      });
      group.replaceChildren(...rows);
    };

    const tell = (layer) => {
      const kept = tda.preview?.kept();
      if (!kept) return (tip.textContent = `layer ${layer}: what is kept is not known before a race`);
      const factor = tda.factors?.get()[layer] ?? 1;
      const own = factor === 1 ? "" : `, threshold × ${factor.toFixed(2)}`;
      tip.textContent = `layer ${layer}: ${kept.words} ${(100 * kept.shares[layer]).toFixed(1)} % kept${own}${tda.preview.adjustable() ? "" : " (only TDA has thresholds to drag)"}`;
    };

    // What the settings keep: a bar a layer.
    const draw = () => {
      const kept = tda.preview?.kept();
      group.dataset.known = Boolean(kept);
      if (!kept) return;
      if (rows.length !== kept.shares.length) build(kept.shares.length);
      const factors = tda.factors?.get() ?? [];
      const adjustable = tda.preview.adjustable();
      rows.forEach((row, layer) => {
        const share = kept.shares[layer];
        row.firstChild.style.transform = `scaleX(${share})`;
        row.setAttribute("aria-valuenow", Math.round(100 * share));
        row.setAttribute("aria-valuetext", `${kept.words} ${Math.round(100 * share)} % kept`);
        row.setAttribute("aria-disabled", !adjustable);
        row.dataset.changed = (factors[layer] ?? 1) !== 1;
      });
    };
    // What the last race kept: a mark a layer.
    const measured = (value) => {
      const kept = value?.kept;
      if (value && rows.length !== value.d_ff.length) build(value.d_ff.length);
      rows.forEach((row, layer) => {
        row.lastChild.hidden = !kept;
        if (kept) row.lastChild.style.left = `${(100 * kept[layer]) / value.d_ff[layer]}%`;
      });
    };

    const focus = (layer) => {
      rows.forEach((row, other) => (row.tabIndex = other === layer ? 0 : -1));
      rows[layer].focus({ preventScroll: true });
    };
    const range = (layer) => {
      const [low, high] = from === null ? [layer, layer] : [Math.min(from, layer), Math.max(from, layer)];
      rows.forEach((row, other) => (row.dataset.chosen = from !== null && other >= low && other <= high));
      return Array.from({ length: high - low + 1 }, (_, at) => low + at);
    };
    const keep = (layer, share) => {
      if (!tda.preview?.adjustable()) return tell(layer);
      const factor = tda.preview.factorFor(layer, Math.max(0.01, Math.min(1, share)));
      if (factor === null) return;
      const factors = [...tda.factors.get()];
      for (const each of range(layer)) factors[each] = factor;
      tda.factors.set(factors);
      tell(layer);
    };
    const reset = (layer) => {
      const factors = [...tda.factors.get()];
      for (const each of range(layer)) factors[each] = 1;
      tda.factors.set(factors);
      tell(layer);
    };
    const layerOf = (event) => Number(event.target.closest(".layer-row")?.dataset.layer ?? -1);
    const shareAt = ({ clientX }) => {
      const { left, width } = rows[0].getBoundingClientRect();
      return (clientX - left) / width;
    };

    group.addEventListener("pointerdown", (event) => {
      const layer = (pressed = layerOf(event));
      if (layer < 0) return;
      const last = rows.findIndex((row) => row.tabIndex === 0);
      from = event.shiftKey ? last : null;
      focus(layer);
      range(layer);
      if (event.pointerType === "touch") return edit(layer);
      dragging = tda.preview?.adjustable() ? layer : false;
      if (dragging !== false) group.setPointerCapture(event.pointerId);
    });
    group.addEventListener("pointermove", (event) => {
      if (dragging !== false && event.buttons) keep(dragging, shareAt(event));
      else if (layerOf(event) >= 0) tell(layerOf(event));
    });
    group.addEventListener("pointerup", () => (dragging = false));
    group.addEventListener("pointerleave", () => (tip.textContent = ""));
    group.addEventListener("dblclick", () => pressed >= 0 && reset(pressed)); // its target is the group, which captured
    group.addEventListener("focusin", (event) => layerOf(event) >= 0 && tell(layerOf(event)));
    group.addEventListener("keydown", (event) => {
      const layer = layerOf(event);
      const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      const more = { ArrowLeft: -STEP, ArrowRight: STEP, PageDown: -5 * STEP, PageUp: 5 * STEP }[event.key];
      if (layer < 0 || (!down && !more && !["Home", "End", "Delete", "Backspace"].includes(event.key))) return;
      event.preventDefault();
      if (down) {
        from = event.shiftKey ? (from ?? layer) : null;
        const next = Math.max(0, Math.min(rows.length - 1, layer + down));
        focus(next);
        range(next);
      } else if (more) {
        keep(layer, (tda.preview?.kept()?.shares[layer] ?? 1) + more / 100);
      } else if (event.key === "Home" || event.key === "End") {
        keep(layer, event.key === "End" ? 1 : 0.01);
      } else {
        reset(layer);
      }
    });

    // On touch a row is too thin to drag: one slider across the whole width sets it.
    const edit = (layer) => {
      if (!tda.preview?.adjustable()) return;
      editor.hidden = false;
      editor.dataset.layer = layer;
      editorName.textContent = `Layer ${layer}, % kept`;
      editorRange.value = Math.round(100 * tda.preview.kept().shares[layer]);
    };
    editorRange.addEventListener("input", () => keep(Number(editor.dataset.layer), editorRange.value / 100));
    editor.querySelector("button").addEventListener("click", () => (editor.hidden = true));

    tda.drawRows = draw;
    draw();
    return { measured };
  };

  // The factors on TDA's thresholds, one a layer: a value without a face, set from the rows.
  tda.factorList = (element, props, watch) => {
    const get = () => (props.value?.length ? props.value : Array(tda.preview?.layers() ?? 0).fill(1));
    tda.factors = {
      get,
      set: (factors) => {
        props.value = factors.map((factor) => Math.round(1000 * factor) / 1000);
        tda.controls?.factorsChanged(props.value);
      },
    };
    watch("value", () => tda.controls?.factorsChanged(props.value));
  };
})();
