// The page's own components: each draws what gradio gives it, or what a courier brings past gradio while something runs.
(() => {
  const tda = (window.tda ??= {});
  const parts = new Map(); // by element id
  const known = (id) => parts.get(id) ?? parts.set(id, { brought: "", draws: [] }).get(id);
  const asked = { brought: "" };

  const give = (part, value) => {
    part.value = value;
    for (const draw of part.draws) draw();
  };

  // Calls `tda[kind]` with a place for its value. What was brought before the component was there is not lost.
  tda.mount = ([kind, id], element, props, watch) => {
    const part = id ? known(id) : { brought: "" };
    part.draws = [];
    if (!part.brought) part.value = props.value;
    tda[kind](element, part, (_, draw) => part.draws.push(draw));
    watch("value", () => give(part, props.value));
  };

  tda.courier = (props, watch, trigger) => {
    let wasRunning = false;
    watch("value", () => {
      const { run, running = false, parts = {}, wish } = props.value ?? {};
      const isNew = (to, text) => text && to.brought !== run + text && Boolean((to.brought = run + text));
      for (const [id, text] of Object.entries(parts)) {
        if (isNew(known(id), text)) give(known(id), JSON.parse(text));
      }
      if (isNew(asked, wish)) tda.controls?.apply(JSON.parse(wish));
      if (running !== wasRunning) trigger("click");
      wasRunning = running;
    });
  };
  // Run and Stop, as gradio is told of them.
  tda.buttons = (running) => [!running, running].map((interactive) => ({ __type__: "update", interactive }));
})();
