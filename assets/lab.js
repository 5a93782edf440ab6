// The lab's finding, with the files a visitor can save, and what the tip says of the lab's plots.
(() => {
  const tda = (window.tda ??= {});
  tda.tips ??= {};

  const short = (number) => Number(number.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });

  // A line a trace at place `x` of the view that is shown; of a heatmap, its value there.
  tda.tips.series = ({ hover, views }, x, y, view) => {
    const place = hover.x[view][x];
    if (place === undefined) return null;
    const lines = [];
    for (const { type, name, z, y: values, customdata: ends } of views[view].data) {
      if (type === "heatmap") {
        if (z[y]?.[x] === undefined) return null;
        return [`${hover.y[view][y]}, ${place}`, short(z[y][x])];
      }
      if (!name || values[x] === undefined) continue;
      lines.push(`${name}: ${short(values[x])}${ends ? ` (${short(ends[x][0])} to ${short(ends[x][1])})` : ""}`);
    }
    return [place, ...lines];
  };

  const made = (tag, name, text = "") => {
    const node = document.createElement(tag);
    node.className = name;
    node.textContent = text;
    return node;
  };

  // How many cases hold, are undecided, or are the opposite, as one bar.
  const shares = (counts) => {
    const bar = made("span", "finding-bar");
    bar.setAttribute("aria-hidden", "true");
    for (const [kind, count] of Object.entries(counts).filter(([, count]) => count)) {
      const part = made("i", `finding-${kind}`);
      part.style.flexGrow = count;
      bar.appendChild(part);
    }
    return bar;
  };

  const check = ({ statement, outcome, told, counts, mean }) => {
    const row = made("li", "finding-check");
    row.dataset.outcome = outcome;
    row.append(made("p", "finding-statement", statement), made("b", "finding-outcome", outcome));
    const numbers = made("p", "finding-numbers");
    numbers.append(made("span", "", told), made("span", "", mean));
    row.append(shares(counts), numbers);
    return row;
  };

  tda.finding = (element, props, watch) => {
    const root = element.querySelector(".finding");
    const draw = () => {
      const value = props.value;
      root.hidden = !value?.checks;
      if (root.hidden) return;
      root.querySelector(".finding-checks").replaceChildren(...value.checks.map(check));
      root.querySelector(".finding-notes").replaceChildren(...value.notes.map((note) => made("li", "", note)));
      const files = root.querySelector(".finding-files");
      tda.fill(root, { files: "Save:" });
      for (const button of files.querySelectorAll("button")) button.remove();
      for (const file of value.files) {
        const button = made("button", "text-button", file.label);
        button.type = "button";
        button.title = file.name;
        button.addEventListener("click", () => tda.save(file.name, file.type, file.text));
        files.appendChild(button);
      }
    };
    draw();
    watch("value", draw);
  };
})();
