"use strict";
(() => {
  // Times in the reader's own zone; as they are written, in UTC, they stay behind the pointer.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  document.getElementById("zone").textContent = zone;
  const told = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  for (const time of document.querySelectorAll("time")) {
    time.title = time.textContent;
    time.textContent = told.format(new Date(time.dateTime));
  }

  const two = (part) => String(part).padStart(2, "0");
  const local = (milliseconds) => {
    const at = new Date(milliseconds);
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  };

  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const narrow = window.matchMedia("(max-width: 600px)").matches;
  const common = {
    font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13, color: "#1b1f24" },
    margin: { l: narrow ? 48 : 72, r: 12, t: 8, b: 40 },
    legend: { orientation: "h", yanchor: "top", y: -0.12 },
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
    hovermode: "closest",
  };
  const options = { responsive: true, displaylogo: false, displayModeBar: false };

  const draw = (plot) => {
    const picture = pictures[Number(plot.dataset.picture)];
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "yes";
    if (picture.times) {
      for (const trace of picture.traces) trace.x = trace.x.map(local);
    }
    Plotly.newPlot(plot, picture.traces, { ...common, ...picture.layout }, options);
  };
  // Each when it comes near the window: drawing all at once would keep a phone busy for seconds.
  const plots = document.querySelectorAll(".plot");
  const seen = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "600px" },
  );
  plots.forEach((plot) => seen.observe(plot));
  window.addEventListener("beforeprint", () => plots.forEach(draw));
})();
