"use strict";
(() => {
  // Times in the reader's own zone; as they are written, in UTC, they stay behind the pointer.
  const told = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const tellTimes = (part) => {
    for (const time of part.querySelectorAll("time")) {
      time.title = time.textContent;
      time.textContent = told.format(new Date(time.dateTime));
    }
  };

  const two = (part) => String(part).padStart(2, "0");
  const local = (milliseconds) => {
    const at = new Date(milliseconds);
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  };

  let pictures = JSON.parse(document.getElementById("pictures").textContent);
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
    const traces = picture.times ? picture.traces.map((trace) => ({ ...trace, x: trace.x.map(local) })) : picture.traces;
    Plotly.newPlot(plot, traces, { ...common, ...picture.layout }, options);
  };
  // Each when it comes near the window: drawing all at once would keep a phone busy for seconds.
  const seen = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "600px" },
  );
  const show = (part) => {
    tellTimes(part);
    part.querySelectorAll(".plot").forEach((plot) => seen.observe(plot));
  };
  window.addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));

  const main = document.querySelector("main");
  const sections = () => [...main.querySelectorAll("section")];
  // As the browser writes them before times are told.
  let known = sections().map((section) => section.outerHTML);
  document.getElementById("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
  show(main);
  if (main.dataset.live === undefined) return;

  // Kept up to date: what has changed takes the place of what was there, and a reader stays where they are.
  const stops = "summary, [tabindex]";
  const replace = (old, fresh) => {
    const at = [...old.querySelectorAll(stops)].indexOf(document.activeElement);
    const open = [...old.querySelectorAll("details")].map((details) => details.open);
    fresh.querySelectorAll("details").forEach((details, place) => (details.open = open[place]));
    old.querySelectorAll(".plot[data-drawn]").forEach((plot) => Plotly.purge(plot));
    old.replaceWith(fresh);
    show(fresh);
    if (at >= 0) fresh.querySelectorAll(stops)[at]?.focus({ preventScroll: true });
  };
  const say = (text) => (document.getElementById("live").textContent = text);
  const source = new EventSource(`figures?after=${main.dataset.live}`);
  source.onmessage = (event) => {
    const now = JSON.parse(event.data);
    const redrawn = JSON.stringify(pictures) !== JSON.stringify(now.pictures);
    pictures = now.pictures;
    const fresh = now.sections.map((html) => {
      const holder = document.createElement("template");
      holder.innerHTML = html;
      return holder.content.firstElementChild;
    });
    const written = fresh.map((section) => section.outerHTML);
    const old = sections();
    fresh.forEach((section, place) => {
      if (place >= old.length) {
        main.append(section);
        show(section);
      } else if (written[place] !== known[place] || (redrawn && section.querySelector(".plot"))) {
        replace(old[place], section);
      }
    });
    old.slice(fresh.length).forEach((section) => section.remove());
    known = written;
    say(`Brought up to date at ${told.format(new Date())}.`);
  };
  source.addEventListener("trouble", (event) => say(`It could not be brought up to date: ${JSON.parse(event.data)}.`));
  source.onerror = () => say("The server does not answer; it is asked again.");
})();
