// The address that opens this page with `values`, in the clipboard; what the notice then says.
async (defaults, values) => {
  const methods = ["method", "rival"].map((name) => values[Object.keys(defaults).indexOf(name)]);
  const link = new URL(location.origin + location.pathname);
  Object.entries(defaults).forEach(([name, standard], index) => {
    const value = values[index] ?? "";
    const [owner, setting] = name.split(".");
    const plain = Array.isArray(value) ? value.every((factor) => factor === 1) : value === standard || value === "";
    if (!plain && (!setting || methods.includes(owner))) link.searchParams.set(name, value);
  });
  const said = (text) => [{ text, tone: "quiet", progress: null }];
  try {
    await navigator.clipboard.writeText(link.href);
    return said("The link to these settings is copied.");
  } catch {
    return said(`Copy this link: ${link.href}`);
  }
}
