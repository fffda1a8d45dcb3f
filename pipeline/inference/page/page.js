// Two photographs are encoded once; a slider runs the generator alone. Nothing is sent anywhere: see the policy in
// index.html. A lambda of 1 is A, 0 is B. Points are [x, y]; spots are points of the square frame, from 0 to 1.
const $ = (id) => document.getElementById(id);
const COLUMNS = 6, FRAMES = 16, FRAME_MS = 70, LARGEST_SIDE = 2048;
const PRESET_TITLES = { "content-style": "Content of A, style of B" };
const ORDER = ["A", "B", "C", "A′", "B′"];
const stale = new Set(), tiles = []; // what is to be computed, the first of ORDER first, then these
const places = {}, sessions = {}, masks = new Map();
let manifest, ort, sliders, size, region = "", busy = true, moved = 0, touched = "A";

const plus = ([a, b], [c, d]) => [a + c, b + d];
const minus = ([a, b], [c, d]) => [a - c, b - d];
const turned = ([x, y], angle) => [x * Math.cos(angle) - y * Math.sin(angle), x * Math.sin(angle) + y * Math.cos(angle)];

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function read(path, kind, integrity) {
  const answer = await fetch(path, integrity ? { integrity } : {});
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer[kind]();
}

function copyOf(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

function newCanvas(width, height = width) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

// Where a photograph lies in its frame: the image's point at the frame's centre, how much of it the frame's side spans,
// and by which angle it is turned.
class View {
  constructor(image) {
    this.fitting = Math.min(manifest.crop ?? image.height, image.width, image.height);
    Object.assign(this, { image, centre: [image.width / 2, image.height / 2], side: this.fitting, angle: 0 });
  }

  fromCentre([x, y]) {
    return turned([(x - 0.5) * this.side, (y - 0.5) * this.side], -this.angle);
  }

  pointAt(spot) {
    return plus(this.centre, this.fromCentre(spot));
  }

  hold(point, spot) { // move the image so that its point lies at that spot
    this.centre = minus(point, this.fromCentre(spot));
  }

  pin(points, spots) { // move, scale and turn the image so that two of its points lie at two spots
    const [inside, outside] = [minus(points[1], points[0]), minus(spots[1], spots[0])];
    if (Math.hypot(...inside) < 1e-6 || Math.hypot(...outside) < 1e-6) return;
    this.zoomTo(this.fitting * Math.hypot(...outside) / Math.hypot(...inside));
    this.angle = Math.atan2(outside[1], outside[0]) - Math.atan2(inside[1], inside[0]);
    this.hold(points[0], spots[0]);
  }

  get zoom() {
    return this.fitting / this.side;
  }

  zoomTo(zoom) {
    this.side = this.fitting / Math.min(Math.max(zoom, 1 / 4), 16);
  }

  draw(canvas) {
    const context = canvas.getContext("2d"), scale = canvas.width / this.side;
    context.resetTransform();
    context.fillStyle = "#808080";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.translate(canvas.width / 2, canvas.height / 2);
    context.rotate(this.angle);
    context.scale(scale, scale);
    context.translate(-this.centre[0], -this.centre[1]);
    context.drawImage(this.image, 0, 0);
    context.resetTransform();
  }
}

// What the encoder gets: RGBA of size x size, drawn four times as large and halved twice, so that nothing flickers.
function pixels(place) {
  let canvas = newCanvas(4 * size);
  place.view.draw(canvas);
  while (canvas.width > size) canvas = halved(canvas);
  return canvas.getContext("2d").getImageData(0, 0, size, size);
}

function halved(image) {
  const canvas = newCanvas(Math.ceil(image.width / 2), Math.ceil(image.height / 2));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// A faint mask of where a face belongs, over the photograph.
function drawGuide(canvas) {
  const context = canvas.getContext("2d"), n = canvas.width;
  const at = (name) => manifest.landmarks[name].map((share) => share * n);
  const [left, right, nose, ...mouth] = ["lefteye", "righteye", "nose", "leftmouth", "rightmouth"].map(at);
  const unit = right[0] - left[0], middle = [(left[0] + right[0]) / 2, (left[1] + mouth[0][1]) / 2];
  const shape = new Path2D();
  for (const eye of [left, right]) {
    shape.moveTo(eye[0] + unit * 0.22, eye[1]);
    shape.ellipse(...eye, unit * 0.22, unit * 0.12, 0, 0, 7);
  }
  shape.moveTo(nose[0] + unit * 0.08, nose[1]);
  shape.arc(...nose, unit * 0.08, 0, 7);
  shape.moveTo(...mouth[0]);
  shape.quadraticCurveTo(middle[0], mouth[0][1] + unit * 0.25, ...mouth[1]);
  shape.moveTo(middle[0] + unit, middle[1]);
  shape.ellipse(...middle, unit, unit * 1.4, 0, 0, 7);
  for (const [width, colour] of [[n / 90, "rgb(0 0 0 / 25%)"], [n / 200, "rgb(255 255 255 / 60%)"]]) {
    Object.assign(context, { lineWidth: width, strokeStyle: colour });
    context.stroke(shape);
  }
}

function showPlace(place) {
  place.view.draw(place.canvas);
  drawGuide(place.canvas);
  place.zoom.value = Math.log2(place.view.zoom);
  place.turn.value = place.view.angle * 180 / Math.PI;
  ask(place.name);
}

async function loadPhotograph(place, blob, name) {
  try {
    let image = await createImageBitmap(blob);
    while (Math.max(image.width, image.height) > LARGEST_SIDE) image = halved(image);
    place.view = new View(image);
    place.aim(false);
    showPlace(place);
    say(`${place.name}: ${name}`);
  } catch {
    say(`${name}: this browser cannot read it as a picture`, true);
  }
}

function makePlace(name) {
  const section = copyOf("place"), one = (query) => section.querySelector(query);
  const place = { name, canvas: one("canvas"), zoom: one(".zoom"), turn: one(".turn"), eyes: null };
  Object.assign(place.canvas, { width: 512, height: 512 });
  one("h2").textContent = `Photograph ${name}`;
  place.canvas.setAttribute("aria-label",
    `Photograph ${name}. Arrow keys move it, plus and minus zoom, comma and full stop turn it.`);
  place.aim = (on) => {
    place.eyes = on ? [] : null;
    one(".eyes").setAttribute("aria-pressed", on);
    place.canvas.classList.toggle("aiming", on);
    if (on) say(`Click one eye of ${name}, then the other.`);
  };
  one(".choose").onclick = () => one("[type=file]").click();
  one("[type=file]").onchange = ({ target }) => {
    if (target.files[0]) loadPhotograph(place, target.files[0], target.files[0].name);
    target.value = "";
  };
  one(".eyes").onclick = () => place.aim(!place.eyes);
  one(".reset").onclick = () => { place.view = new View(place.view.image); showPlace(place); };
  place.zoom.oninput = () => { place.view.zoomTo(2 ** place.zoom.value); showPlace(place); };
  place.turn.oninput = () => { place.view.angle = place.turn.value * Math.PI / 180; showPlace(place); };
  section.addEventListener("pointerdown", () => { touched = name; });
  section.addEventListener("focusin", () => { touched = name; });
  for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    section.addEventListener(kind, () => place.canvas.classList.toggle("over", over));
  }
  section.addEventListener("drop", ({ dataTransfer }) => {
    if (dataTransfer.files[0]) loadPhotograph(place, dataTransfer.files[0], dataTransfer.files[0].name);
  });
  manifest.examples.forEach((path, index) => {
    const button = document.createElement("button"), title = `Painted face ${index + 1}`;
    button.append(Object.assign(new Image(), { src: path, alt: title }));
    button.onclick = async () => loadPhotograph(place, await read(path, "blob"), title);
    one(".examples").append(button);
  });
  movable(place);
  $("places").append(section);
  return place;
}

// Drag with one finger or the mouse, zoom and turn with two or the wheel; or with keys.
function movable(place) {
  const { canvas } = place, fingers = new Map();
  const spotOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const grasp = () => fingers.forEach((finger) => { finger.point = place.view.pointAt(finger.spot); });
  canvas.onpointerdown = (event) => {
    if (place.eyes) return aimAt(place, spotOf(event));
    canvas.setPointerCapture(event.pointerId);
    if (fingers.size < 2) fingers.set(event.pointerId, { spot: spotOf(event) });
    grasp();
  };
  canvas.onpointermove = (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    finger.spot = spotOf(event);
    const [one, two] = [...fingers.values()];
    if (two) place.view.pin([one.point, two.point], [one.spot, two.spot]);
    else place.view.hold(one.point, one.spot);
    showPlace(place);
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => { fingers.delete(event.pointerId); grasp(); };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const spot = spotOf(event), point = place.view.pointAt(spot);
    place.view.zoomTo(place.view.zoom * 2 ** (-event.deltaY / 500));
    place.view.hold(point, spot);
    showPlace(place);
  }, { passive: false });
  const by = (x, y) => place.view.hold(place.view.pointAt([0.5, 0.5]), [0.5 + x / 100, 0.5 + y / 100]);
  const turn = (degrees) => { place.view.angle += degrees * Math.PI / 180; };
  const zoom = (factor) => place.view.zoomTo(place.view.zoom * factor);
  const keys = {
    ArrowLeft: () => by(-1, 0), ArrowRight: () => by(1, 0), ArrowUp: () => by(0, -1), ArrowDown: () => by(0, 1),
    "+": () => zoom(1.02), "=": () => zoom(1.02), "-": () => zoom(1 / 1.02), ",": () => turn(-1), ".": () => turn(1),
    Escape: () => place.aim(false),
  };
  canvas.onkeydown = (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
    showPlace(place);
  };
}

function aimAt(place, spot) {
  place.eyes.push(place.view.pointAt(spot));
  if (place.eyes.length === 1) return say(`Now the other eye of ${place.name}.`);
  const [one, two] = place.eyes, upright = turned(minus(two, one), place.view.angle)[0] > 0;
  place.view.pin(upright ? [one, two] : [two, one], [manifest.landmarks.lefteye, manifest.landmarks.righteye]);
  place.aim(false);
  showPlace(place);
  say(`${place.name} is set straight by its eyes.`);
}

function makeSlider(title, text, oninput) {
  const row = copyOf("slider"), input = row.querySelector("input"), id = `slider-${$("sliders").children.length}`;
  input.id = row.querySelector("label").htmlFor = id;
  row.querySelector("label").textContent = title;
  row.querySelector("output").htmlFor = id;
  row.querySelector("p").textContent = text;
  $("sliders").append(row);
  const shown = (value) => {
    const words = value === null ? "mixed" : `λ ${value.toFixed(2)}`;
    row.querySelector("output").textContent = words;
    input.setAttribute("aria-valuetext", words);
  };
  input.oninput = () => oninput(1 - input.value);
  return { set(value) { if (value !== null) input.value = 1 - value; shown(value); }, get: () => 1 - input.value };
}

function makeMix() {
  const all = makeSlider("All elements", "", (lambda) => setLambdas(manifest.elements.map(() => lambda)));
  sliders = manifest.elements.map(({ name, text }, index) =>
    makeSlider(name.startsWith("element ") ? name : `${index + 1} ${name}`, text, () => setLambdas(lambdas())));
  sliders.all = all;
  const same = (lambda) => manifest.elements.map(() => lambda);
  const presets = { ...manifest.presets, A: same(1), B: same(0), Halves: same(0.5) };
  for (const [name, values] of Object.entries(presets)) {
    const button = document.createElement("button");
    button.textContent = PRESET_TITLES[name] ?? name;
    button.onclick = () => setLambdas(values);
    $("presets").append(button);
  }
  for (const name of ["", ...manifest.regions]) {
    const label = Object.assign(document.createElement("label"), { className: "choice" });
    const input = Object.assign(document.createElement("input"),
      { type: "radio", name: "region", value: name, checked: !name });
    input.onchange = () => { region = name; moved = performance.now(); ask("C"); };
    label.append(input, name || "everywhere");
    $("regions").append(label);
  }
  setLambdas(same(0.5));
}

const lambdas = () => sliders.map((slider) => slider.get());

function setLambdas(values) {
  values.forEach((value, index) => sliders[index].set(value));
  sliders.all.set(values.every((value) => value === values[0]) ? values[0] : null);
  moved = performance.now();
  ask("C");
}

function ask(name) {
  stale.add(name);
  work();
}

// One thing after another; of what was asked for meanwhile, only the newest counts.
async function work() {
  if (busy) return;
  setBusy(true);
  try {
    for (;;) {
      const name = ORDER.find((each) => stale.delete(each)), job = name ? () => compute(name) : tiles.shift();
      if (!job) break;
      await job();
    }
  } catch (error) {
    tiles.length = 0;
    say(`That failed: ${error.message}`, true);
  } finally {
    setBusy(false);
  }
}

function setBusy(now) {
  busy = now;
  document.querySelector("main").setAttribute("aria-busy", now);
}

async function compute(name) {
  if (name === "A" || name === "B") {
    const place = places[name];
    place.pixels = pixels(place);
    place.z = (await sessions.encoder.run({ image: tensor(planes(place.pixels), [1, 3, size, size]) })).output;
    [`${name}′`, "C"].forEach((each) => stale.add(each));
  } else if (name === "C") {
    show($("c"), await fuse(lambdas(), region));
    const time = performance.now() - moved;
    $("time").textContent = `C was drawn in ${time.toFixed(0)} ms.`;
    $("time").dataset.ms = time;
  } else {
    const [of] = name;
    show($(`${of.toLowerCase()}-drawn`), await fuse(manifest.elements.map(() => (of === "A" ? 1 : 0)), ""));
  }
}

function planes({ data }) { // RGBA bytes -> (3, size, size) in [-1, 1]
  const values = new Float32Array(3 * size * size);
  for (let i = 0; i < values.length; i++) values[i] = data[4 * (i % (size * size)) + Math.floor(i / (size * size))] / 127.5 - 1;
  return values;
}

// A copy: the runtime takes the numbers that it is given away, into its worker.
const tensor = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);

async function fuse(values, where) {
  const [z_a, z_b] = [places.A.z, places.B.z].map(({ data, dims }) => tensor(data, dims));
  const inputs = { z_a, z_b, lambdas: tensor(values, [1, values.length]) };
  if (where) inputs.mask = tensor(masks.get(where), [size, size]);
  if (where && !sessions.region) sessions.region = await openNetwork("region.onnx", "the network for regions");
  const { output } = await sessions[where ? "region" : "generator"].run(inputs);
  return output.data;
}

function show(canvas, values) {
  const picture = new ImageData(size, size), { data } = picture; // which rounds and clamps
  for (let i = 0; i < size * size; i++) {
    for (let colour = 0; colour < 3; colour++) data[4 * i + colour] = (values[colour * size * size + i] + 1) * 127.5;
    data[4 * i + 3] = 255;
  }
  Object.assign(canvas, { width: size, height: size });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

async function fusedCanvas(values, where) {
  const canvas = newCanvas(size);
  show(canvas, await fuse(values, where));
  return canvas;
}

// Rows of { title, lambdas(lambda), where }, under A and B themselves: one picture that explains itself.
function drawSheet(title, rows) {
  const sheet = $("sheet"), side = Math.max(size, 128), left = 130, top = 28, gap = 4, context = sheet.getContext("2d");
  Object.assign(sheet, { hidden: false, width: left + COLUMNS * (side + gap), height: top + (rows.length + 1) * (side + gap) });
  sheet.setAttribute("aria-label", `${title}. From left to right, lambda falls from 1 to 0.`);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, sheet.width, sheet.height);
  Object.assign(context, { fillStyle: "#222", font: "14px system-ui, sans-serif", textBaseline: "middle" });
  const write = (text, row) => text.split("\n").forEach((line, index, lines) =>
    context.fillText(line, 4, top + (row + 0.5) * (side + gap) + 19 * (index - (lines.length - 1) / 2)));
  const put = (image, row, column) =>
    context.drawImage(image, left + column * (side + gap), top + row * (side + gap), side, side);
  const photograph = (name) => {
    const canvas = newCanvas(size);
    canvas.getContext("2d").putImageData(places[name].pixels, 0, 0);
    return canvas;
  };
  write("A and B", 0);
  [["A", 0], ["B", COLUMNS - 1]].forEach(([name, column]) => put(photograph(name), 0, column));
  tiles.length = 0;
  rows.forEach((row, y) => write(row.title.replace(/(.{6,14}?) /g, "$1\n"), y + 1));
  for (let column = 0; column < COLUMNS; column++) {
    const lambda = 1 - column / (COLUMNS - 1);
    context.fillText(`λ ${lambda.toFixed(1)}`, left + column * (side + gap) + side / 2 - 15, top / 2);
    rows.forEach((row, y) => tiles.push(async () => put(await fusedCanvas(row.lambdas(lambda), row.where), y + 1, column)));
  }
  tiles.push(() => { $("save-sheet").hidden = false; say(`${title}: drawn.`); });
  $("save-sheet").hidden = true;
  say(`${title}: drawing…`);
  work();
}

function drawStrip() {
  const title = region ? `all elements, ${region} only` : "all elements";
  drawSheet("Strip", [{ title, lambdas: (lambda) => manifest.elements.map(() => lambda), where: region }]);
}

function drawGrid() {
  drawSheet("Grid", manifest.elements.map(({ name }, element) => ({
    title: name.startsWith("element ") ? name : `${element + 1} ${name}`,
    lambdas: (lambda) => manifest.elements.map((_, index) => (index === element ? lambda : 1)),
    where: "",
  })));
}

const blobOf = (canvas, type, quality) => new Promise((done) => canvas.toBlob(done, type, quality));

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// From A to B and back, within the region if there is one.
function saveAnimation() {
  const frames = [];
  tiles.length = 0;
  for (let frame = 0; frame < FRAMES; frame++) {
    tiles.push(async () => {
      const values = manifest.elements.map(() => 1 - frame / (FRAMES - 1));
      const blob = await blobOf(await fusedCanvas(values, region), "image/webp", 0.92);
      if (blob?.type !== "image/webp") throw new Error("this browser cannot write WebP");
      frames.push(new Uint8Array(await blob.arrayBuffer()));
    });
  }
  tiles.push(() => {
    download(animatedWebp([...frames, ...frames.slice(1, -1).reverse()]), "fused.webp");
    say("The animation is written.");
  });
  say("Drawing the animation…");
  work();
}

// Single WebP files as one animation: https://developers.google.com/speed/webp/docs/riff_container
function animatedWebp(stills) {
  const little = (value, count) => Array.from({ length: count }, (_, index) => (value >> (8 * index)) & 255);
  const chunk = (name, ...parts) => {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    return [[...name].map((letter) => letter.charCodeAt(0)), little(length, 4), ...parts, length % 2 ? [0] : []];
  };
  const pictures = stills.map((bytes) => {
    const kept = [];
    for (let at = 12; at + 8 <= bytes.length;) {
      const name = String.fromCharCode(...bytes.subarray(at, at + 4));
      const length = new DataView(bytes.buffer).getUint32(at + 4, true), end = at + 8 + length + (length % 2);
      if (["ALPH", "VP8 ", "VP8L"].includes(name)) kept.push(bytes.subarray(at, end));
      at = end;
    }
    return kept;
  });
  const sides = [...little(size - 1, 3), ...little(size - 1, 3)];
  const frames = pictures.flatMap((kept) => chunk("ANMF", little(0, 6), sides, little(FRAME_MS, 3), [2], ...kept));
  const head = [...chunk("VP8X", [2, 0, 0, 0], sides), ...chunk("ANIM", little(0xffffff, 4), little(0, 2))];
  return new Blob(chunk("RIFF", [..."WEBP"].map((letter) => letter.charCodeAt(0)), ...head, ...frames)
    .map((part) => new Uint8Array(part)), { type: "image/webp" });
}

async function openNetwork(path, what) {
  say(`Loading ${what}…`);
  const session = await ort.InferenceSession.create(await read(path, "arrayBuffer"), { executionProviders: ["wasm"] });
  say("Ready.");
  return session;
}

async function openRuntime() {
  const [script, compiled] = manifest.runtime;
  // Both are compared with their hash; a script can only be imported from an address, hence the blob.
  const source = await read(script.url, "text", script.integrity);
  ort = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = await read(compiled.url, "arrayBuffer", compiled.integrity);
  ort.env.wasm.proxy = true; // computes beside the page, which stays alive meanwhile
}

async function start() {
  manifest = await read("manifest.json", "json");
  size = manifest.size;
  const trained = manifest.trained?.step ? ` after ${manifest.trained.step} steps` : "";
  $("about").textContent = `Model: ${size} × ${size} pixels, ${manifest.trained?.stage ?? ""}${trained}.`;
  const bytes = new Uint8Array(await read("regions.bin", "arrayBuffer"));
  manifest.regions.forEach((name, index) =>
    masks.set(name, Float32Array.from(bytes.subarray(index * size * size, (index + 1) * size * size))));
  for (const name of ["A", "B"]) places[name] = makePlace(name);
  makeMix();
  await Promise.all(["A", "B"].map(async (name, index) =>
    loadPhotograph(places[name], await read(manifest.examples[index], "blob"), `Painted face ${index + 1}`)));
  say("Loading the runtime…");
  await openRuntime();
  sessions.encoder = await openNetwork("encoder.onnx", "the encoder");
  sessions.generator = await openNetwork("generator.onnx", "the generator");
  for (const id of ["save-png", "save-webp", "draw-strip", "draw-grid"]) $(id).disabled = false;
  setBusy(false);
  work();
}

for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("paste", ({ clipboardData }) => {
  const file = [...clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file && places[touched]) loadPhotograph(places[touched], file, "Pasted picture");
});
$("save-png").onclick = async () => download(await blobOf($("c"), "image/png"), "fused.png");
$("save-webp").onclick = saveAnimation;
$("draw-strip").onclick = drawStrip;
$("draw-grid").onclick = drawGrid;
$("save-sheet").onclick = async () => download(await blobOf($("sheet"), "image/png"), "faces.png");
start().catch((error) => say(`The page could not start: ${error.message}`, true));

export { pixels, places, lambdas };
