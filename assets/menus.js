// Gradio's menus, made what a reader expects of one: Tab leaves it closed, and typing replaces what stood there.
(() => {
  const menuOf = (event) => event.target.closest?.("input[role=combobox]");
  // Gradio looks at a key once the focus has gone on, and opens the menu that was left.
  document.addEventListener("keydown", (event) => event.key === "Tab" && menuOf(event) && event.stopPropagation(), true);
  // A click puts the cursor behind the name, where what is typed is added to it and no choice is left.
  let entered = null;
  document.addEventListener("focusin", (event) => (entered = menuOf(event))?.select());
  document.addEventListener("click", (event) => {
    if (menuOf(event) === entered) entered?.select();
    entered = null;
  });
})();
