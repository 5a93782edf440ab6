// Another page may show the race in a frame: ?embed=race&theme=dark.
(() => {
  const address = new URL(location.href);
  const [embed, theme] = ["embed", "theme"].map((name) => address.searchParams.get(name));
  if (embed) document.documentElement.dataset.embed = embed;
  if (!["dark", "light"].includes(theme)) return;
  const wear = () => document.body.classList.toggle("dark", theme === "dark");
  const begin = () => {
    wear();
    // Gradio chooses by the browser's own theme, and may choose later.
    new MutationObserver(() => document.body.classList.contains("dark") === (theme === "dark") || wear())
      .observe(document.body, { attributes: true, attributeFilter: ["class"] });
  };
  if (document.body) begin();
  else document.addEventListener("DOMContentLoaded", begin);
})();

// Gradio's start screen counts the seconds at every frame of the browser, and goes on, unseen, for as long as the page is
// open: a twentieth of a core that the race has better use for. Whoever took hold of this function while the start screen
// was there waits between frames once the page is; everybody else gets the browser's own.
(() => {
  const own = window.requestAnimationFrame.bind(window);
  const PAUSE_MS = 500;
  window.requestAnimationFrame = (callback) => {
    if (!document.querySelector(".masthead")) return own(callback);
    window.requestAnimationFrame = own;
    return setTimeout(own, PAUSE_MS, callback);
  };
})();
