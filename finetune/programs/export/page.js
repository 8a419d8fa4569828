// The page: pictures in, mask and legend out. worker.js does the work.

import { png } from "./pixels.js";

const [choose, drop, status, result, picture, overlay, opacity, legend, download] = [
  ...["choose", "drop", "status", "result", "picture", "overlay", "opacity", "legend", "download"],
].map((id) => document.getElementById(id));

const worker = new Worker("worker.js", { type: "module" });
let model;
let number = 0; // of the picture asked for last: answers about earlier ones come too late
let name = "mask";
let found;

function say(text, kind = "") {
  status.textContent = text;
  status.className = kind;
}

function show(file) {
  if (!file) return;
  name = file.name.replace(/\.[^.]*$/, "") || "mask";
  result.hidden = true;
  say(model ? "Segmenting ..." : "Loading the model ...");
  worker.postMessage({ file, number: ++number });
}

worker.onerror = (event) => {
  event.preventDefault();
  say(`This browser cannot run the page (${event.message ?? "module workers are missing"}).`, "bad");
};

worker.onmessage = ({ data }) => {
  if (data.ready) {
    model = data.model;
    if (!number) say("Ready.");
    return;
  }
  if (data.number !== undefined && data.number !== number) return;
  if (data.failed) {
    say(data.failed, "bad");
    return;
  }
  found = data;
  draw();
  const [height, width] = data.size;
  say(`${width} x ${height} pixels in ${data.seconds.toFixed(1)} s.`);
  result.hidden = false;
};

function draw() {
  const { bitmap, mask, size } = found;
  const [height, width] = size;
  for (const canvas of [picture, overlay]) [canvas.width, canvas.height] = [width, height];
  picture.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  const context = overlay.getContext("2d");
  const colored = context.createImageData(width, height);
  const counts = new Array(model.names.length).fill(0);
  for (let i = 0; i < mask.length; i++) {
    colored.data.set(model.colors[mask[i]], 4 * i);
    colored.data[4 * i + 3] = 255;
    counts[mask[i]]++;
  }
  context.putImageData(colored, 0, 0);
  const order = counts.map((_, id) => id).filter((id) => counts[id]);
  order.sort((a, b) => counts[b] - counts[a]);
  legend.replaceChildren(...order.map((id) => entry(id, counts[id] / mask.length)));
  overlay.setAttribute("aria-label", `mask: ${order.map((id) => model.names[id]).join(", ")}`);
}

function entry(id, share) {
  const item = document.createElement("li");
  const swatch = document.createElement("i");
  swatch.style.background = `rgb(${model.colors[id].join(" ")})`;
  const text = document.createElement("span");
  text.textContent = model.names[id];
  const number = document.createElement("b");
  number.textContent = `${(100 * share).toFixed(1)} %`;
  item.append(swatch, text, number);
  return item;
}

download.onclick = async () => {
  const blob = await png(found.mask, ...found.size, model.colors);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name}-mask.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};

const fade = () => (overlay.style.opacity = opacity.value / 100);
opacity.oninput = fade;
fade();

choose.onchange = () => {
  show(choose.files[0]);
  choose.value = ""; // so that the same file may be chosen again
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault(); // or the browser leaves the page for the picture
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") show(event.dataTransfer.files[0]);
  });
}
window.addEventListener("paste", (event) => show(event.clipboardData.files[0]));
