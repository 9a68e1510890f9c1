"use strict";
// Adds what reading does not need: values under the pointer, and lines that a click on their name hides.

const number = value => {
  const size = Math.abs(value);
  return size >= 1000 && size < 1e7 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
};

const inverse = words => {
  const [low, high, start, end] = words.split(" ").map(Number);
  return at => low + (at - start) / (end - start) * (high - low);
};

for (const figure of document.querySelectorAll("figure.lines")) {
  const svg = figure.querySelector("svg");
  const step = inverse(svg.dataset.across), value = inverse(svg.dataset.up);
  const groups = [...svg.querySelectorAll("g[data-name]")];
  const lines = groups.map(group => ({
    group,
    name: group.dataset.name,
    points: group.querySelector("path").getAttribute("d").slice(1).split("L").map(pair => pair.split(",").map(Number)),
  }));

  const tip = document.createElement("div");
  tip.className = "tip off";
  tip.setAttribute("aria-hidden", "true");
  figure.append(tip);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor off");
  svg.append(cursor);

  const hide = () => [tip, cursor].forEach(element => element.classList.add("off"));
  const show = event => {
    const box = svg.getBoundingClientRect(), size = svg.viewBox.baseVal;
    const at = (event.clientX - box.left) / box.width * size.width;
    const near = lines.filter(line => !line.group.classList.contains("off")).map(line => ({
      name: line.name,
      point: line.points.reduce((best, point) => Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best),
    }));
    if (!near.length) return hide();
    const x = near.reduce((best, line) => Math.abs(line.point[0] - at) < Math.abs(best - at) ? line.point[0] : best, Infinity);
    const here = near.filter(line => Math.abs(line.point[0] - x) < 6);
    tip.textContent = [`step ${number(Math.round(step(x)))}`, ...here.map(line => `${line.name}  ${number(value(line.point[1]))}`)].join("\n");
    cursor.setAttribute("d", `M${x},8V${size.height - 36}`);
    [tip, cursor].forEach(element => element.classList.remove("off"));
    const frame = figure.getBoundingClientRect(), left = box.left - frame.left + x / size.width * box.width;
    tip.style.left = `${Math.max(4, Math.min(frame.width - tip.offsetWidth - 4, left + 10))}px`;
    tip.style.top = `${box.top - frame.top + 4}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);

  const keys = [...figure.querySelectorAll(".key")];
  if (keys.length < 2) continue;
  keys.forEach((key, at) => {
    const button = document.createElement("button");
    button.className = key.className;
    button.type = "button";
    button.textContent = key.textContent;
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const hidden = groups[at].classList.toggle("off");
      button.setAttribute("aria-pressed", String(!hidden));
    });
    key.replaceWith(button);
  });
}
