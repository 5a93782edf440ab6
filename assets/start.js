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
