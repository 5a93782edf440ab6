// The recorded race while gradio still loads what the page is made of: its first answer holds all values already.
(() => {
  const tda = (window.tda ??= {});
  const SETTLE_MS = 400; // in which the page's parts find their places, unseen
  const address = new URL(location.href).searchParams;
  const props = (id) => window.gradio_config?.components?.find(({ props }) => props.elem_id === id)?.props;
  const [stage, prompt] = ["stage", "prompt"].map(props);
  if (!stage?.value?.replay || address.has("embed") || document.querySelector("gradio-app .stage")) return;

  const style = document.createElement("style");
  style.textContent = window.gradio_config.css;
  const early = document.createElement("div");
  early.id = "early";
  early.inert = true;
  const dark = address.get("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  early.classList.toggle("dark", dark === "dark");
  early.innerHTML = `${props("masthead")?.value ?? ""}<p class="early-prompt"></p>${stage.html_template}`; // both the page's own
  early.querySelector(".early-prompt").textContent = prompt?.value ?? "";
  for (const name of ["id", "data-testid", "aria-labelledby"]) {
    for (const element of early.querySelectorAll(`[${name}]`)) element.removeAttribute(name);
  }
  document.body.append(style, early);
  tda.whenControls ??= () => {}; // there are none yet
  tda.stage(early, { value: stage.value }, () => {});
  const stop = tda.beginRace;
  tda.leaveEarly = () => {
    delete tda.leaveEarly;
    setTimeout(() => {
      stop();
      early.remove();
      style.remove();
    }, SETTLE_MS);
  };
})();
