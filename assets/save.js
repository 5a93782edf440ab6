// Files made in the browser: nothing is kept on the server.
(() => {
  const tda = (window.tda ??= {});

  tda.save = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };

  // Saves each value it is given: {name, type, text}.
  tda.saver = (element, props, watch) => {
    watch("value", () => props.value?.name && tda.save(props.value.name, props.value.type, props.value.text));
  };
})();
