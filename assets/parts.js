// The page's own components: each draws what gradio gives it, or what a courier brings past gradio while something runs.
(() => {
  const tda = (window.tda ??= {});
  const parts = new Map(); // by element id
  const known = (id) => parts.get(id) ?? parts.set(id, { mark: null, draws: [] }).get(id);
  let wished = null;

  const give = (part, value) => {
    part.value = value;
    for (const draw of part.draws) draw();
  };

  // Calls `tda[kind]` with a place for its value. What was brought before the component was there is not lost.
  tda.mount = ([kind, id], element, props, watch) => {
    const part = id ? known(id) : { mark: null };
    part.draws = [];
    if (part.mark === null) part.value = props.value;
    tda[kind](element, part, (_, draw) => part.draws.push(draw));
    watch("value", () => give(part, props.value));
  };

  tda.courier = (props, watch) =>
    watch("value", () => {
      for (const [id, [mark, value]] of Object.entries(props.value?.parts ?? {})) {
        const part = known(id);
        if (part.mark === mark) continue;
        part.mark = mark;
        give(part, value);
      }
      const [mark, wish] = props.value?.wish ?? [null, null];
      if (wish && mark !== wished) tda.controls?.apply(wish);
      wished = mark;
    });
})();
