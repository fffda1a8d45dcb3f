// Two photographs are encoded once; a slider runs the generator alone. Nothing is sent anywhere: see the policy in
// index.html. A lambda of 1 is A, 0 is B. Points are [x, y]; spots are points of the square frame, from 0 to 1.
const $ = (id) => document.getElementById(id), main = document.querySelector("main"); // busy until all is loaded
const COLUMNS = 6, FRAMES = 16, FRAME_MS = 70, LARGEST_SIDE = 2048;
const ORDER = ["A", "B", "C", "A′", "B′"];
const stale = new Set(), tiles = []; // what is to be computed, the first of ORDER first, then these
const places = {}, sessions = {}, masks = new Map();
let manifest, ort, sliders, size, region = "", moved = 0, touched = "A";

const plus = ([a, b], [c, d]) => [a + c, b + d];
const minus = ([a, b], [c, d]) => [a - c, b - d];
const turned = ([x, y], angle) =>
  [x * Math.cos(angle) - y * Math.sin(angle), x * Math.sin(angle) + y * Math.cos(angle)];
const copyOf = (id) => $(id).content.firstElementChild.cloneNode(true);
const newCanvas = (width, height = width) => Object.assign(document.createElement("canvas"), { width, height });

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function read(path, kind, integrity) {
  const answer = await fetch(path, integrity ? { integrity } : {});
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer[kind]();
}

// Where a photograph lies in its frame: the image's point at the frame's centre, how much of it the frame's side spans,
// and by which angle it is turned.
class View {
  constructor(image) {
    this.fitting = Math.min(manifest.crop ?? image.height, image.width, image.height);
    Object.assign(this, { image, centre: [image.width / 2, image.height / 2], side: this.fitting, angle: 0 });
  }
  get zoom() { return this.fitting / this.side; }
  set zoom(zoom) { this.side = this.fitting / Math.min(Math.max(zoom, 1 / 4), 16); }
  fromCentre([x, y]) { return turned([(x - 0.5) * this.side, (y - 0.5) * this.side], -this.angle); }
  pointAt(spot) { return plus(this.centre, this.fromCentre(spot)); }
  hold(point, spot) { this.centre = minus(point, this.fromCentre(spot)); } // moves that point of the image to the spot
  pin(points, spots) { // moves, scales and turns the image so that two of its points lie at two spots
    const [inside, outside] = [points, spots].map(([one, two]) => minus(two, one));
    if (Math.min(Math.hypot(...inside), Math.hypot(...outside)) < 1e-6) return;
    this.zoom = this.fitting * Math.hypot(...outside) / Math.hypot(...inside);
    this.angle = Math.atan2(outside[1], outside[0]) - Math.atan2(inside[1], inside[0]);
    this.hold(points[0], spots[0]);
  }
  draw(canvas) {
    const context = canvas.getContext("2d"), scale = canvas.width / this.side;
    Object.assign(context, { fillStyle: "#808080", imageSmoothingQuality: "high" });
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.translate(canvas.width / 2, canvas.height / 2);
    context.rotate(this.angle);
    context.scale(scale, scale);
    context.drawImage(this.image, -this.centre[0], -this.centre[1]);
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
  context.save();
  const at = (name) => manifest.landmarks[name].map((share) => share * n);
  const [left, right, ...mouth] = ["lefteye", "righteye", "leftmouth", "rightmouth"].map(at);
  const unit = right[0] - left[0], middle = [(left[0] + right[0]) / 2, (left[1] + mouth[0][1]) / 2];
  const shape = new Path2D();
  for (const eye of [left, right]) {
    shape.moveTo(eye[0] + unit * 0.22, eye[1]);
    shape.ellipse(...eye, unit * 0.22, unit * 0.12, 0, 0, 7);
  }
  shape.moveTo(...mouth[0]);
  shape.quadraticCurveTo(middle[0], mouth[0][1] + unit * 0.25, ...mouth[1]);
  shape.moveTo(middle[0] + unit, middle[1]);
  shape.ellipse(...middle, unit, unit * 1.4, 0, 0, 7);
  Object.assign(context, { lineWidth: n / 160, strokeStyle: "#fff8", shadowBlur: n / 90, shadowColor: "#0008" });
  context.stroke(shape);
  context.restore();
}

function showPlace(place) {
  place.view.draw(place.canvas);
  drawGuide(place.canvas);
  place.zoom.value = Math.log2(place.view.zoom);
  place.turn.value = place.view.angle * 180 / Math.PI;
  work(place.name);
}

async function loadPhotograph(place, blob, name = blob?.name) {
  if (!blob) return;
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
  one("[type=file]").onchange = ({ target }) => loadPhotograph(place, target.files[0]);
  one(".eyes").onclick = () => place.aim(!place.eyes);
  one(".reset").onclick = () => { place.view = new View(place.view.image); showPlace(place); };
  place.zoom.oninput = () => { place.view.zoom = 2 ** place.zoom.value; showPlace(place); };
  place.turn.oninput = () => { place.view.angle = place.turn.value * Math.PI / 180; showPlace(place); };
  for (const kind of ["pointerdown", "focusin"]) section.addEventListener(kind, () => { touched = name; });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    section.addEventListener(kind, () => place.canvas.classList.toggle("over", kind === "dragover"));
  }
  section.addEventListener("drop", ({ dataTransfer }) => loadPhotograph(place, dataTransfer.files[0]));
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
    place.view.zoom *= 2 ** (-event.deltaY / 500);
    place.view.hold(point, spot);
    showPlace(place);
  }, { passive: false });
  const by = (x, y) => place.view.hold(place.view.pointAt([0.5, 0.5]), [0.5 + x / 100, 0.5 + y / 100]);
  const turn = (degrees) => { place.view.angle += degrees * Math.PI / 180; };
  const zoom = (factor) => { place.view.zoom *= factor; };
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
  const row = copyOf("slider"), [label, output, input, sentence] = row.children;
  input.id = label.htmlFor = output.htmlFor = `slider-${$("sliders").children.length}`;
  label.textContent = title;
  sentence.textContent = text;
  $("sliders").append(row);
  input.oninput = () => oninput(1 - input.value);
  const set = (value) => { // null: the elements differ
    if (value !== null) input.value = 1 - value;
    output.textContent = value === null ? "mixed" : `λ ${value.toFixed(2)}`;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  return { set, get: () => 1 - input.value };
}

const titleOf = ({ name }, index) => (name.startsWith("element ") ? name : `${index + 1} ${name}`);
const same = (lambda) => manifest.elements.map(() => lambda);
const lambdas = () => sliders.map((slider) => slider.get());

function makeMix() {
  const all = makeSlider("All elements", "", (lambda) => setLambdas(same(lambda)));
  sliders = manifest.elements.map((element, index) =>
    makeSlider(titleOf(element, index), element.text, () => setLambdas(lambdas())));
  sliders.all = all;
  const presets = { A: same(1), Halves: same(0.5), B: same(0), ...manifest.presets };
  for (const [name, values] of Object.entries(presets)) {
    const button = Object.assign(document.createElement("button"), { textContent: name });
    button.onclick = () => setLambdas(values);
    $("presets").append(button);
  }
  for (const value of ["", ...manifest.regions]) {
    const label = Object.assign(document.createElement("label"), { className: "choice" });
    const input = { type: "radio", name: "region", value, checked: !value };
    label.append(Object.assign(document.createElement("input"), input), value || "everywhere");
    label.onchange = () => { region = value; setLambdas(lambdas()); };
    $("regions").append(label);
  }
  setLambdas(same(0.5));
}

function setLambdas(values) {
  values.forEach((value, index) => sliders[index].set(value));
  sliders.all.set(values.every((value) => value === values[0]) ? values[0] : null);
  moved = performance.now();
  work("C");
}

// One thing after another; of what was asked for meanwhile, only the newest counts.
async function work(...names) {
  names.forEach((name) => stale.add(name));
  if (main.ariaBusy === "true") return;
  main.ariaBusy = true;
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
    main.ariaBusy = false;
  }
}

async function compute(name) {
  if (name === "A" || name === "B") {
    const place = places[name];
    place.pixels = pixels(place);
    place.z = (await sessions.encoder.run({ image: tensor(planes(place.pixels), [1, 3, size, size]) })).output;
    [`${name}′`, "C"].forEach((each) => stale.add(each));
  } else if (name === "C") {
    show($("c"), await fuse(lambdas(), region));
    if (moved) $("time").textContent = `C was drawn in ${(performance.now() - moved).toFixed(0)} ms.`;
    moved = 0;
  } else {
    const [of] = name;
    show($(`${of.toLowerCase()}-drawn`), await fuse(same(of === "A" ? 1 : 0), ""));
  }
}

function planes({ data }) { // RGBA bytes -> (3, size, size) in [-1, 1]
  const count = size * size;
  return new Float32Array(3 * count).map((_, i) => data[4 * (i % count) + Math.floor(i / count)] / 127.5 - 1);
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
  const picture = new ImageData(size, size), count = size * size;
  picture.data.fill(255);
  values.forEach((value, i) => { // the picture rounds and clamps
    picture.data[4 * (i % count) + Math.floor(i / count)] = (value + 1) * 127.5;
  });
  Object.assign(canvas, { width: size, height: size });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

const fusedCanvas = async (values, where) => show(newCanvas(size), await fuse(values, where));

// Rows of { title, lambdas(lambda), where }, under A and B themselves: one picture that explains itself.
function drawSheet(title, rows) {
  const sheet = $("sheet"), side = Math.max(size, 128), left = 130, top = 28, gap = 4, context = sheet.getContext("2d");
  const [width, height] = [left + COLUMNS * (side + gap), top + (rows.length + 1) * (side + gap)];
  Object.assign(sheet, { hidden: false, width, height });
  sheet.setAttribute("aria-label", `${title}. From left to right, lambda falls from 1 to 0.`);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, sheet.width, sheet.height);
  Object.assign(context, { fillStyle: "#222", font: "14px system-ui, sans-serif", textBaseline: "middle" });
  const write = (text, row) => text.split("\n").forEach((line, index, lines) =>
    context.fillText(line, 4, top + (row + 0.5) * (side + gap) + 19 * (index - (lines.length - 1) / 2)));
  const put = (image, row, column) =>
    context.drawImage(image, left + column * (side + gap), top + row * (side + gap), side, side);
  write("A and B", 0);
  put(show(newCanvas(size), planes(places.A.pixels)), 0, 0);
  put(show(newCanvas(size), planes(places.B.pixels)), 0, COLUMNS - 1);
  tiles.length = 0;
  rows.forEach((row, y) => write(row.title.replace(/(.{6,14}?) /g, "$1\n"), y + 1));
  for (let column = 0; column < COLUMNS; column++) {
    const lambda = 1 - column / (COLUMNS - 1);
    context.fillText(`λ ${lambda.toFixed(1)}`, left + column * (side + gap) + side / 2 - 15, top / 2);
    rows.forEach((row, y) =>
      tiles.push(async () => put(await fusedCanvas(row.lambdas(lambda), row.where), y + 1, column)));
  }
  tiles.push(() => { $("save-sheet").hidden = false; say(`${title}: drawn.`); });
  $("save-sheet").hidden = true;
  say(`${title}: drawing…`);
  work();
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
      const blob = await blobOf(await fusedCanvas(same(1 - frame / (FRAMES - 1)), region), "image/webp", 0.92);
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

// Single WebP files become one animation: https://developers.google.com/speed/webp/docs/riff_container
function animatedWebp(stills) {
  const little = (value, count) => Array.from({ length: count }, (_, index) => (value >> (8 * index)) & 255);
  const letters = (text) => [...text].map((letter) => letter.charCodeAt(0));
  const chunk = (name, ...parts) => {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    return [letters(name), little(length, 4), ...parts, length % 2 ? [0] : []];
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
  const parts = chunk("RIFF", letters("WEBP"), ...head, ...frames);
  return new Blob(parts.map((part) => new Uint8Array(part)), { type: "image/webp" });
}

async function openNetwork(path, what) {
  say(`Loading ${what}…`);
  const session = await ort.InferenceSession.create(await read(path, "arrayBuffer"), { executionProviders: ["wasm"] });
  say("Ready.");
  return session;
}

async function openRuntime() {
  const [script, compiled] = manifest.runtime;
  // Both are compared with their hash. A script is only imported from an address: hence the blob.
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
  moved = performance.now();
  main.ariaBusy = false;
  work();
}

for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("paste", ({ clipboardData }) => {
  loadPhotograph(places[touched], clipboardData.files[0]);
});
$("save-png").onclick = async () => download(await blobOf($("c"), "image/png"), "fused.png");
$("save-webp").onclick = saveAnimation;
$("draw-strip").onclick = () =>
  drawSheet("Strip", [{ title: `all elements ${region && `in the ${region}`}`, lambdas: same, where: region }]);
$("draw-grid").onclick = () => drawSheet("Grid", manifest.elements.map((element, row) =>
  ({ title: titleOf(element, row), lambdas: (lambda) => same(1).with(row, lambda), where: "" })));
$("save-sheet").onclick = async () => download(await blobOf($("sheet"), "image/png"), "faces.png");
start().catch((error) => say(`The page could not start: ${error.message}`, true));

export { pixels, places, lambdas };
