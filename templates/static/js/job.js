// The live job page: the curve, drawn by uPlot from #points and from what the socket sends.
// The socket's other messages are HTML, which htmx swaps in by id.
(function () {
  const byStep = new Map();
  let plot;

  // Which change was pressed: the buttons live in a piece that is swapped, outside their form, and
  // htmx sends what is inside.
  document.addEventListener(
    "submit",
    (event) => {
      const pressed = event.target.id === "accept-change" && event.submitter;
      if (pressed) event.target.querySelector("[name=change]").value = pressed.value;
    },
    true,
  );

  // A later attempt that repeats a step replaces it.
  function keep(points) {
    for (const point of points) {
      const known = byStep.get(point.step);
      if (!known || point.epoch >= known.epoch) byStep.set(point.step, point);
    }
  }

  // How the held-out rows are measured: it depends on the recipe.
  const MEASURES = ["loss", "accuracy", "reward"];

  function columns() {
    const points = [...byStep.values()].sort((a, b) => a.step - b.step);
    const of = (name) => points.map((point) => point.values[name] ?? null);
    const heldOut = MEASURES.map((measure) => of("heldout_" + measure));
    return [points.map((point) => point.step), of("loss"), ...heldOut];
  }

  function isMeasured(measure) {
    return [...byStep.values()].some((point) => "heldout_" + measure in point.values);
  }

  // A loss has the axis of the other loss; the other measures have one of their own, on the right.
  function heldOutSeries(measure) {
    return {
      label: "held-out " + measure,
      scale: measure === "loss" ? "y" : "share",
      stroke: "#c2571a",
      width: 2,
      spanGaps: true,
      points: { show: true, size: 8 },
      show: isMeasured(measure),
    };
  }

  // What is first measured while the page is open is shown from then on.
  function showMeasured() {
    MEASURES.forEach((measure, index) => {
      if (isMeasured(measure) && !plot.series[index + 2].show) plot.setSeries(index + 2, { show: true });
    });
  }

  function draw() {
    const element = document.getElementById("curve");
    if (!element || !byStep.size) return;
    if (plot) {
      plot.setData(columns());
      showMeasured();
      return;
    }
    const ink = getComputedStyle(document.body).color;
    const axis = { stroke: ink, grid: { stroke: "#8884", width: 1 }, ticks: { stroke: "#8884" } };
    plot = new uPlot(
      {
        width: element.clientWidth,
        height: 240,
        scales: { x: { time: false } },
        axes: [axis, { ...axis, size: 56 }, { ...axis, scale: "share", side: 1, grid: { show: false } }],
        series: [
          { label: "step" },
          { label: "loss", stroke: "#0f8a75", width: 2, spanGaps: true },
          ...MEASURES.map(heldOutSeries),
        ],
      },
      columns(),
      element,
    );
  }

  document.addEventListener("DOMContentLoaded", () => {
    const source = document.getElementById("points");
    if (source) keep(JSON.parse(source.textContent));
    draw();
  });
  document.addEventListener("htmx:wsBeforeMessage", (event) => {
    if (!event.detail.message.startsWith("{")) return;
    event.preventDefault();
    keep(JSON.parse(event.detail.message).points);
    draw();
  });
  // A log is read from its end.
  function toTheEnd() {
    const log = document.querySelector("#job-log pre");
    if (log) log.scrollTop = log.scrollHeight;
  }
  document.addEventListener("DOMContentLoaded", toTheEnd);
  document.addEventListener("htmx:wsAfterMessage", toTheEnd);
  addEventListener("resize", () => {
    const element = document.getElementById("curve");
    if (plot) plot.setSize({ width: element.clientWidth, height: 240 });
  });
})();
