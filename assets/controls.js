// What the controls are set to, told to whoever draws from it; and the few things of the page that gradio has no word for.
(() => {
  const tda = (window.tda ??= {});
  const waiting = [];
  tda.whenControls = (then) => (tda.controls ? then(tda.controls) : waiting.push(then));

  const prompt = () => document.querySelector("#prompt textarea");
  const plain = (value) => {
    if (Array.isArray(value)) return value.every((factor) => factor === 1) ? "" : value.join(",");
    return value === null || value === undefined ? "" : String(value);
  };

  const make = () => {
    let raced = null; // the settings of the result that is shown
    let names = [];
    const changed = [];
    const stale = [];
    // What makes a difference to a race: of the methods only those chosen; a budget turns their dials itself.
    const signature = (values) =>
      JSON.stringify(
        names
          .filter((name) => !name.includes(".") || [values.method, values.rival].includes(name.split(".")[0]))
          .filter((name) => values.by === "setting" || !name.includes(".") || !/\.(cett|keep|sparsity)$/.test(name))
          .map((name) => [name, plain(values[name])]),
      );
    const tell = () => {
      for (const then of changed) then(controls.values);
      const own = raced !== null && raced !== signature(controls.values);
      for (const then of stale) then(own);
    };
    const controls = {
      values: {},
      onChange: (then) => (changed.push(then), then(controls.values)),
      onStale: (then) => stale.push(then),
      update(given, values) {
        names = given;
        controls.values = Object.fromEntries(given.map((name, at) => [name, values[at]]));
        raced ??= signature(controls.values); // what is shown at first is of the settings the page opens with
        tell();
      },
      set(name, value) {
        if (String(controls.values[name]) === String(value)) return;
        controls.values = { ...controls.values, [name]: value };
        tell();
      },
      factorsChanged(factors) {
        controls.set("tda.scale", factors);
        tell();
      },
      begin() {
        raced = signature(controls.values);
        controls.began = { ...controls.values };
        controls.asked = prompt().value;
        tell();
      },
      result: () => tell(),
      // Puts a prompt back, as if it were typed.
      ask(text) {
        prompt().value = text;
        prompt().dispatchEvent(new Event("input", { bubbles: true }));
      },
      // Has gradio put `wish`, values by name, into its components.
      apply(wish) {
        tda.wish = wish;
        tda.applyWish?.();
      },
      applied(given, values) {
        const wish = tda.wish ?? {};
        return given.map((name, at) => (name in wish ? wish[name] : values[at]));
      },
      shows(settings) {
        raced = settings === null ? null : signature(settings);
        tell();
      },
    };
    return controls;
  };

  // Tells the controls of a change that came from gradio, and has them drawn.
  tda.heard = (names, values) => {
    tda.controls ??= make();
    tda.controls.update(names, values);
    for (const then of waiting.splice(0)) then(tda.controls);
    mark();
    return [];
  };
  // A component whose event, sent from here, has gradio write values into others.
  tda.applier = (trigger) => (tda.applyWish = () => trigger("change"));

  // An example is raced as soon as it stands in the prompt.
  tda.race = (text) => {
    const run = (tries) => {
      if (prompt().value === text) document.querySelector("button#run").click();
      else if (tries) setTimeout(run, 20, tries - 1);
    };
    run(100);
    return text;
  };

  const TEST_IDS = { prompt: "#prompt textarea", run: "button#run", stop: "button#stop" };
  const mark = () => {
    for (const [name, selector] of Object.entries(TEST_IDS)) document.querySelector(selector)?.setAttribute("data-testid", name);
    for (const old of document.querySelectorAll("#dials [data-testid=setting]")) old.removeAttribute("data-testid");
    const dials = [...document.querySelectorAll("#dials input[type=range]")];
    dials.find((own) => !own.closest(".of-rival"))?.setAttribute("data-testid", "setting");
  };
  const dial = (target) => target.closest?.("#dials .block[id]")?.id;

  // What a button folds out: the sheet of all settings lies over the race, the drawer below it.
  const fold = (name, open) => {
    document.documentElement.toggleAttribute(`data-${name}`, open);
    const isOpen = document.documentElement.hasAttribute(`data-${name}`);
    document.querySelector(`#open-${name}`)?.setAttribute("aria-expanded", isOpen);
  };

  const begin = () => {
    fold("sheet", false);
    tda.beginRace?.();
    tda.controls?.begin();
  };
  document.addEventListener("click", ({ target }) => {
    if (target.closest("button#run")) begin();
    if (target.closest("#open-drawer")) fold("drawer");
    if (target.closest("#open-sheet")) fold("sheet");
    else if (!target.closest("#sheet, [role=listbox], [role=option]")) fold("sheet", false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") fold("sheet", false);
    if (event.key === "Enter" && !event.shiftKey && event.target.closest("#prompt")) begin();
  }, true);
  // A dial that is dragged is heard of at once, before gradio tells of it.
  document.addEventListener("input", ({ target }) => {
    const id = target.type === "range" || target.type === "number" ? dial(target) : null;
    const name = id && Object.keys(tda.controls?.values ?? {}).find((each) => each.includes(".") && each.replaceAll(/[._]/g, "-") === id);
    if (name && target.value !== "") tda.controls.set(name, Number(target.value));
  }, true);
  const watchDials = () => {
    const dials = document.querySelector("#dials");
    if (!dials) return setTimeout(watchDials, 50);
    mark();
    new MutationObserver(mark).observe(dials, { childList: true, subtree: true });
  };
  watchDials();
})();
