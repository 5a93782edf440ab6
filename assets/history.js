// The races of this visit: a strip of what each came to; one click brings back its prompt, its settings and what it showed.
(() => {
  const tda = (window.tda ??= {});
  const MOST = 8;

  tda.history = (strip, show) => {
    const past = [];
    const draw = () => {
      strip.replaceChildren(
        ...past.map((race) => {
          const button = document.createElement("button");
          button.type = "button";
          const name = document.createElement("b");
          name.textContent = race.value.label;
          const { speedup, claim, agreement, price_label: priced } = race.value.slots;
          button.append(name, ` ${speedup || claim} · ${agreement ? `${agreement} ${priced}` : "not judged"}`);
          button.dataset.damaged = race.value.damaged.includes("sparse");
          button.addEventListener("click", () => {
            tda.controls.ask(race.prompt);
            tda.controls.apply(race.settings);
            show({ ...race.value, restored: true });
            tda.controls.shows(race.settings);
          });
          return button;
        }),
      );
      strip.dataset.empty = past.length === 0;
      strip.scrollLeft = strip.scrollWidth;
    };
    draw();
    return {
      keep(value) {
        if (!tda.controls?.began) return;
        const settings = { ...tda.controls.began };
        if (settings.by !== "setting") Object.assign(settings, Object.fromEntries(Object.entries(tda.controls.values).filter(([name]) => name.includes("."))));
        past.push({ value: structuredClone(value), settings, prompt: tda.controls.asked });
        if (past.length > MOST) past.shift();
        draw();
      },
    };
  };
})();
