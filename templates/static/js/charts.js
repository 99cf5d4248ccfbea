// Draws every .chart with uPlot from the JSON script that its data-series names: an object of
// name → [xs, ys]. Redraws when htmx swaps one in. X is time in seconds unless data-x says "step".
(function () {
  const colours = ["#0f8a75", "#c2571a", "#5a62c9", "#a2247e", "#7a7a1a", "#1f78b4"];

  function draw(element) {
    const source = document.getElementById(element.dataset.series);
    if (!source || element.dataset.drawn) return;
    element.dataset.drawn = "yes";
    const byName = JSON.parse(source.textContent);
    const names = Object.keys(byName);
    const xs = [...new Set(names.flatMap((name) => byName[name][0]))].sort((a, b) => a - b);
    const columns = names.map((name) => {
      const at = new Map(byName[name][0].map((x, i) => [x, byName[name][1][i]]));
      return xs.map((x) => (at.has(x) ? at.get(x) : null));
    });
    const ink = getComputedStyle(document.body).color;
    const axis = { stroke: ink, grid: { stroke: "#8884", width: 1 }, ticks: { stroke: "#8884" } };
    const unit = element.dataset.unit || "";
    element.plot = new uPlot(
      {
        width: element.clientWidth,
        height: 240,
        scales: { x: { time: element.dataset.x !== "step" } },
        axes: [axis, { ...axis, size: 64, values: (u, ticks) => ticks.map((t) => unit + t) }],
        series: [
          { label: element.dataset.x === "step" ? "step" : "time" },
          ...names.map((name, i) => ({
            label: name,
            stroke: colours[i % colours.length],
            width: 2,
            spanGaps: true,
            points: { show: xs.length < 40 },
          })),
        ],
      },
      [xs, ...columns],
      element,
    );
  }

  function drawAll() {
    document.querySelectorAll(".chart").forEach(draw);
  }

  addEventListener("resize", () =>
    document.querySelectorAll(".chart").forEach((element) =>
      element.plot?.setSize({ width: element.clientWidth, height: 240 })));
  document.addEventListener("htmx:afterSettle", drawAll);
  document.addEventListener("htmx:wsAfterMessage", drawAll);
  document.addEventListener("DOMContentLoaded", drawAll);
})();
