// What the settings are expected to come to, in the frame in which they change: bytes, limit and quality read off curves
// that were measured on calibration texts, and the kept share of every layer. Three sliders, one setting: drag any.
(() => {
  const tda = (window.tda ??= {});
  const MOST_KL = 1; // nats per token: the end of the slider
  const FINE = 3; // its places crowd at the small end: position = (KL / most) ^ (1 / FINE)

  // Linear between measured values; `xs` may rise or fall.
  const interpolate = (xs, ys, x) => {
    const rising = xs[0] <= xs[xs.length - 1];
    const beyond = xs.findIndex((each) => (rising ? each >= x : each <= x));
    if (beyond < 0) return ys[ys.length - 1];
    if (beyond === 0) return ys[0];
    const [low, high] = [xs[beyond - 1], xs[beyond]];
    return ys[beyond - 1] + ((x - low) / (high - low)) * (ys[beyond] - ys[beyond - 1]);
  };
  // The sparsest value of the dial whose cost is at most `most`, costs made monotone.
  const sparsestWithin = (values, costs, most, sign) => {
    let worst = -Infinity;
    const rising = costs.map((cost) => (worst = Math.max(worst, sign * cost)));
    const last = rising.findLastIndex((cost) => cost <= sign * most);
    if (last < 0) return values[0];
    if (last === values.length - 1) return values[last];
    const part = (sign * most - rising[last]) / (rising[last + 1] - rising[last]);
    return values[last] + part * (values[last + 1] - values[last]);
  };
  // Share 0..1 of a layer's scores, given as quantiles from small to large, that reach `limit`; and the other way round.
  const shareAbove = (quantiles, limit) => {
    const beyond = quantiles.findIndex((score) => score >= limit);
    if (beyond < 0) return 0;
    if (beyond === 0) return 1;
    const [low, high] = [quantiles[beyond - 1], quantiles[beyond]];
    return 1 - (beyond - 1 + (limit - low) / (high - low)) / (quantiles.length - 1);
  };
  const limitFor = (quantiles, share) => {
    const at = (1 - share) * (quantiles.length - 1);
    const low = Math.min(Math.floor(at), quantiles.length - 2);
    return quantiles[low] + (at - low) * (quantiles[low + 1] - quantiles[low]);
  };
  Object.assign((tda.curves = {}), { interpolate, sparsestWithin, shareAbove, limitFor });

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const percent = (share) => `${Math.round(100 * share)} %`;

  tda.previewOf = (element, props) => {
    const root = element.querySelector(".preview");
    const [bytes, quality] = ["bytes", "quality"].map((name) => root.querySelector(`[data-dial=${name}]`));
    const slots = (values) => tda.fill(root, values);
    const data = props.value;
    let prompt = null; // scores of the prompt that was read last

    const current = () => {
      const values = tda.controls?.values ?? {};
      const method = data.methods[values.method];
      if (!method) return null;
      const others = Object.entries(values).filter(([name]) => name.startsWith(`${values.method}.`) && name !== method.key && name !== "tda.scale");
      const same = (curve) => others.every(([name, value]) => String(curve.others[name] ?? "") === String(value ?? ""));
      const usual = [data.model, "automatic", data.precision];
      const known = values.model === usual[0] && usual.slice(1).includes(values.precision);
      return { method, value: Number(values[method.key]), curve: known ? (method.curves.find(same) ?? null) : null };
    };

    const kept = () => {
      const now = current();
      if (!now?.curve) return null;
      const { curve, value } = now;
      if (!curve.kept) return null; // chosen anew at every token
      const shares = Array.from({ length: data.layers }, (_, layer) => {
        if (!curve.limits) return interpolate(curve.values, curve.kept.map((layers) => layers[layer]), value);
        if (value === now.method.dense) return 1;
        const limit = interpolate(curve.values, curve.limits.map((layers) => layers[layer]), value) * (tda.factors?.get()[layer] ?? 1);
        return shareAbove(scoresOf(curve)[layer], limit);
      });
      return { shares, words: exact(curve) ? "on your prompt" : "expected" };
    };
    const exact = (curve) => Boolean(prompt && curve.limits && prompt.evidence === curve.evidence);
    const scoresOf = (curve) => (exact(curve) ? prompt.scores : curve.scores);

    const costs = () => {
      const now = current();
      if (!now?.curve) return null;
      const { curve, value } = now;
      if (curve.points && !curve.values.some((each) => Math.abs(each - value) < 1e-6)) return null;
      let share = interpolate(curve.values, curve.share, value);
      let step = interpolate(curve.values, curve.step, value);
      const at = curve.values.findIndex((each) => Math.abs(each - value) < 1e-6);
      let kl = curve.kl.includes(null) ? (curve.kl[at] ?? null) : interpolate(curve.values, curve.kl, value);
      if (curve.limits) {
        // What a neuron left out still costs follows from the curve's sparsest end.
        const [k, s] = [mean(curve.kept.at(-1)), curve.share.at(-1)];
        const rest = k < 1 ? (s - k) / (1 - k) : 0;
        const own = mean(kept().shares);
        share = own + (1 - own) * rest;
        step = 1 - (data.mlp_bytes / data.dense_bytes) * (1 - share); // it leaves out nothing but neurons
        if (tda.factors?.get().some((factor) => factor !== 1)) kl = curve.kl.includes(null) ? null : interpolate(curve.share, curve.kl, share);
      }
      return { share, kl, bound: 1 / step };
    };

    const draw = () => {
      const now = current();
      const known = costs();
      root.dataset.known = Boolean(known);
      for (const input of [bytes, quality]) input.disabled = !known || Boolean(now.curve.points);
      if (!known) {
        slots({ share: "–", kl: "–", bound: now ? "not measured for these settings: a race will tell" : "", source: "" });
        return tda.drawRows?.();
      }
      const { curve } = now;
      const floor = Math.min(...curve.share);
      bytes.min = Math.ceil(100 * floor);
      bytes.max = 100;
      if (document.activeElement !== bytes) bytes.value = Math.round(100 * known.share);
      quality.disabled ||= curve.kl.includes(null);
      if (document.activeElement !== quality) quality.value = 100 * Math.min(1, (known.kl ?? 0) / MOST_KL) ** (1 / FINE);
      bytes.setAttribute("aria-valuetext", `${percent(known.share)} of the MLP bytes`);
      const kl = known.kl === null ? "?" : known.kl < 0.001 ? "0" : known.kl.toPrecision(2);
      quality.setAttribute("aria-valuetext", `KL ${kl} nats per token`);
      slots({
        share: percent(known.share),
        kl,
        bound: `limit ${known.bound.toFixed(2)}×`,
        source: exact(curve) ? "layers exact, the rest expected" : curve.points ? "expected, held-out answers" : "expected, calibration texts",
      });
      tda.drawRows?.();
    };

    // The dial is gradio's: it hears of a value as if somebody had dragged it there.
    const turn = (value) => {
      const { method } = current();
      const input = document.querySelector(`#${method.key.replaceAll(/[._]/g, "-")} input[type=range]`);
      if (!input) return;
      input.value = Math.max(Number(input.min), Math.min(Number(input.max), value));
      input.dispatchEvent(new Event("input", { bubbles: true }));
    };
    bytes.addEventListener("input", () => {
      const { curve } = current();
      turn(sparsestWithin(curve.values, curve.share, bytes.value / 100, -1));
    });
    quality.addEventListener("input", () => {
      const { curve } = current();
      turn(sparsestWithin(curve.values, curve.kl, MOST_KL * (quality.value / 100) ** FINE, 1));
    });

    tda.preview = {
      kept,
      costs,
      draw,
      layers: () => data.layers,
      adjustable: () => Boolean(current()?.curve?.limits) && current().value !== current().method.dense,
      factorFor(layer, share) {
        const { curve, value } = current();
        const limit = interpolate(curve.values, curve.limits.map((layers) => layers[layer]), value);
        return limit > 0 ? Math.min(2, limitFor(scoresOf(curve)[layer], share) / limit) : null;
      },
      read(scores) {
        prompt = scores;
        draw();
      },
    };
    tda.whenControls((controls) => controls.onChange(draw));
    tda.heard(Object.keys(data.controls), Object.values(data.controls));
  };
})();
