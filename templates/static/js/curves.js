// A round's supply and demand of one GPU class, as steps: price over GPUs, from #curve.
(function () {
  const HEIGHT = 280;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // [GPUs, supply, demand, mean price], in dollars; a value holds for the GPUs up to its place.
  function columns(curve) {
    const ends = [...curve.supply, ...curve.demand].map((point) => point.gpus);
    const xs = [...new Set([0, ...ends])].sort((a, b) => a - b);
    const at = (points) => xs.map((x) => {
      const found = points.find((point) => point.gpus >= Math.max(x, 1));
      return found ? found.price / 1e6 : null;
    });
    return [xs, at(curve.supply), at(curve.demand), xs.map(() => (curve.mean ? curve.mean / 1e6 : null))];
  }

  function plot(element, data) {
    const ink = dark.matches ? "#9aa8a3" : "#5a6763";
    const supply = dark.matches ? "#4fc9b0" : "#0f6b5c";
    const demand = dark.matches ? "#f0a868" : "#9a4b00";
    const axis = { stroke: ink, grid: { stroke: "#8883", width: 1 }, ticks: { stroke: "#8883" } };
    const dollars = (u, x) => (x == null ? "–" : "$" + x.toFixed(0 < x && x < 0.1 ? 4 : 2));
    const steps = { paths: uPlot.paths.stepped({ align: -1 }), width: 2, points: { show: false }, value: dollars };
    return new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        scales: { x: { time: false }, y: { range: (u, low, high) => [0, high * 1.1 || 1] } },
        axes: [
          { ...axis, label: "GPUs", labelSize: 20, values: (u, ticks) => ticks.map((t) => (Number.isInteger(t) ? t : "")) },
          { ...axis, size: 66, values: (u, ticks) => ticks.map((t) => dollars(u, t)) },
        ],
        series: [
          { label: "GPUs" },
          { label: "supply", stroke: supply, ...steps },
          { label: "demand", stroke: demand, ...steps },
          { label: "let at", stroke: ink, width: 1, dash: [6, 4], points: { show: false }, value: dollars },
        ],
      },
      data,
      element,
    );
  }

  document.addEventListener("DOMContentLoaded", () => {
    const element = document.getElementById("curve-chart");
    if (!element) return;
    const data = columns(JSON.parse(document.getElementById("curve").textContent));
    element.hidden = document.getElementById("curve-legend").hidden = false;
    let chart = plot(element, data);
    addEventListener("resize", () => chart.setSize({ width: element.clientWidth, height: HEIGHT }));
    dark.addEventListener("change", () => {
      chart.destroy();
      chart = plot(element, data);
    });
  });
})();
