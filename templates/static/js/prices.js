// The market page's chart: a class's mean price with its lowest and highest, and how many GPUs were
// let, from the public API; asked for again every five seconds while the page is looked at.
(function () {
  const EVERY_MS = 5000;
  const HEIGHT = 280;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // [times, bars, highest, lowest, mean] with a gap wherever nothing was let.
  function columns(answer) {
    const at = new Map(answer.points.map((point) => [Date.parse(point.at) / 1000, point]));
    const first = Math.ceil(Date.parse(answer.since) / 1000 / answer.step_s) * answer.step_s;
    const last = Date.parse(answer.at) / 1000;
    const times = new Set(at.keys());
    for (let time = first; time <= last; time += answer.step_s) times.add(time);
    const xs = [...times].sort((a, b) => a - b);
    const column = (name, by) => xs.map((x) => (at.has(x) ? at.get(x)[name] / by : null));
    return [xs, column("gpus", 1), column("high", 1e6), column("low", 1e6), column("price", 1e6)];
  }

  // $1.87, and as many more places as it takes to tell neighbours apart.
  function places(data) {
    const seen = data[2].concat(data[3]).filter((y) => y !== null);
    const span = Math.max(...seen) - Math.min(...seen);
    return Math.max(...seen) < 0.1 || span < 0.05 ? 4 : 2;
  }

  function clock(seconds, span) {
    const text = new Date(seconds * 1000).toISOString();
    const midnight = text.slice(11, 16) === "00:00";
    return span > 2 * 86400 && midnight ? text.slice(5, 10) : text.slice(11, 16);
  }

  function plot(element, data) {
    const ink = dark.matches ? "#9aa8a3" : "#5a6763";
    const line = dark.matches ? "#4fc9b0" : "#0f6b5c";
    const axis = { stroke: ink, grid: { stroke: "#8883", width: 1 }, ticks: { stroke: "#8883" } };
    const dollars = (u, x) => (x == null ? "–" : "$" + x.toFixed(places(u.data)));
    const faint = { scale: "$", stroke: line + "55", width: 1, spanGaps: true, points: { show: false } };
    return new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        // Bars stay in the lower quarter, so that they lie under the prices.
        scales: {
          gpus: { range: (u, low, high) => [0, 4 * (high || 1)] },
          $: { range: (u, low, high) => (low == null ? [0, 1] : padded(low, high)) },
        },
        axes: [
          { ...axis, values: (u, ticks) => ticks.map((t) => clock(t, u.data[0].at(-1) - u.data[0][0])) },
          { ...axis, scale: "$", size: 66, values: (u, ticks) => ticks.map((t) => dollars(u, t)) },
        ],
        series: [
          { label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}" },
          { label: "GPUs let", scale: "gpus", fill: ink + "55", stroke: ink + "55", width: 0,
            paths: uPlot.paths.bars({ size: [0.8, 24] }), points: { show: false } },
          { label: "highest", ...faint, value: dollars },
          { label: "lowest", ...faint, value: dollars },
          { label: "mean", scale: "$", stroke: line, width: 2, spanGaps: true,
            points: { show: data[4].filter((y) => y !== null).length < 60 }, value: dollars },
        ],
        bands: [{ series: [2, 3], fill: line + "22" }],
      },
      data,
      element,
    );
  }

  // With room for the bars below.
  function padded(low, high) {
    const span = Math.max(high - low, high / 20);
    return [Math.max(0, low - span / 2), high + span / 10];
  }

  async function follow(element) {
    let chart = null;
    let data = null;
    const draw = () => {
      chart?.destroy();
      chart = plot(element, data);
    };
    const ask = async () => {
      if (document.hidden) return;
      const answer = await fetch(element.dataset.source).catch(() => null);
      if (!answer?.ok) return;
      data = columns(await answer.json());
      const empty = data[4].every((y) => y === null);
      element.hidden = document.getElementById("price-legend").hidden = empty;
      if (empty) return;
      if (chart) chart.setData(data);
      else draw();
    };
    addEventListener("resize", () => chart?.setSize({ width: element.clientWidth, height: HEIGHT }));
    dark.addEventListener("change", () => chart && draw());
    await ask();
    setInterval(ask, EVERY_MS);
  }

  // The tables below are swapped every five seconds; how far they were scrolled aside stays.
  const tables = () => [...document.querySelectorAll("#market .scroll")];
  let scrolled = [];
  document.addEventListener("htmx:beforeSwap", () => {
    scrolled = tables().map((table) => table.scrollLeft);
  });
  document.addEventListener("htmx:afterSettle", () =>
    tables().forEach((table, i) => (table.scrollLeft = scrolled[i] ?? 0)));

  document.addEventListener("DOMContentLoaded", () => {
    const element = document.getElementById("price-chart");
    if (element) follow(element);
  });
})();
