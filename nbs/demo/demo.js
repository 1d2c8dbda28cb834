// CMUNeXt in the browser: the steps of cmunext_nb's `predict`, with ONNX Runtime as WebAssembly. No image is sent anywhere.
// model.json, the networks that it names and the scans lie beside this file; `.ci/demo.py` makes them.

const ENGINE = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"
const $ = id => document.getElementById(id)
const state = { session: null, weights: null, about: null, image: null, probability: null, milliseconds: 0, turn: 0, choice: 0, offered: 0 }
const sessions = new Map()  // a network is fetched when it is first asked for
window.demo = state  // for the test, and for the curious
const about = asked()

// What model.json says: the networks, how pixels are prepared, the scans.
async function asked() {
  const answer = await fetch("model.json")
  if (!answer.ok) throw new Error("model.json is not there: the page was built without the network (python .ci/demo.py makes it).")
  return answer.json()
}

// ?ort=folder/ takes the engine from a folder of this server instead.
function engineFolder() {
  const asked = new URLSearchParams(location.search).get("ort")
  if (!asked) return ENGINE
  const url = new URL(asked, location.href)
  if (url.origin !== location.origin) throw new Error(`The engine may come from this server alone, not from ${url.origin}.`)
  return url.href
}

function say(text, wrong = false) {
  $("said").textContent = text
  $("said").classList.toggle("wrong", wrong)
}

const nextFrame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)))

// Bilinear with antialiasing along one axis, as in `resize`: for each new position the old ones that it sees, and their weights.
function taps(from, to) {
  const scale = from / to, support = Math.max(scale, 1)
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale
    const first = Math.max(0, Math.trunc(centre - support + 0.5)), last = Math.min(from, Math.trunc(centre + support + 0.5))
    const weights = []
    for (let j = first; j < last; j++) weights.push(Math.max(0, 1 - Math.abs((j - centre + 0.5) / support)))
    const sum = weights.reduce((a, b) => a + b, 0)
    return { first, weights: weights.map(w => w / sum) }
  })
}

// A map (height x width) at another size.
function resized(map, height, width, newHeight, newWidth) {
  if (height === newHeight && width === newWidth) return map
  const across = taps(width, newWidth), down = taps(height, newHeight)
  const middle = new Float32Array(height * newWidth), out = new Float32Array(newHeight * newWidth)
  for (let y = 0; y < height; y++) across.forEach(({ first, weights }, x) => {
    let sum = 0
    for (let k = 0; k < weights.length; k++) sum += weights[k] * map[y * width + first + k]
    middle[y * newWidth + x] = sum
  })
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < newWidth; x++) {
      let sum = 0
      for (let k = 0; k < weights.length; k++) sum += weights[k] * middle[(first + k) * newWidth + x]
      out[y * newWidth + x] = sum
    }
  })
  return out
}

// The image as the network expects it: channels in order, each value in 0..1 times scale plus offset.
function prepared({ pixels, height, width }, size, { order, scale, offset }) {
  const area = size * size, out = new Float32Array(order.length * area)
  order.forEach((from, c) => {
    const map = Float32Array.from({ length: height * width }, (_, i) => pixels[4 * i + from] / 255)
    resized(map, height, width, size, size).forEach((v, i) => { out[c * area + i] = v * scale[c] + offset[c] })
  })
  return out
}

// Another image or other weights: nothing of what was computed before may be drawn or saved, nor a mask that is being made.
function forget() {
  state.probability = state.mask = null
  state.offered++
  $("save").hidden = true
  if (state.image) bare(state.image)
}

// The image alone, until its mask is there; the new size empties both canvases.
function bare({ pixels, height, width, name }) {
  for (const id of ["picture", "heat"]) Object.assign($(id), { width, height })
  $("picture").getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0)
  $("picture").setAttribute("aria-label", `${name}, without a mask so far.`)
}

async function compute() {
  const turn = ++state.turn, { image, session } = state
  if (!session || !image) return
  const { about: { size }, weights: { preprocess } } = state
  say("Computing ...")
  await nextFrame()
  if (turn !== state.turn) return  // another image or other weights were chosen meanwhile
  const input = new state.ort.Tensor("float32", prepared(image, size, preprocess), [1, preprocess.order.length, size, size])
  const start = performance.now()
  const { logits } = await session.run({ images: input })
  const milliseconds = performance.now() - start
  if (turn !== state.turn) return
  const probability = Float32Array.from(logits.data.slice(0, size ** 2), v => 1 / (1 + Math.exp(-v)))
  Object.assign(state, { milliseconds, probability: resized(probability, size, size, image.height, image.width) })
  draw()
}

const RAMP = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [187, 174, 108], [254, 232, 56]]
function color(p) {
  const at = Math.min(Math.max(p, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(at), RAMP.length - 2)
  return RAMP[i].map((v, k) => v + (at - i) * (RAMP[i + 1][k] - v))
}

// A mask pixel with a neighbour outside, within so many pixels.
function onRim(mask, y, x, height, width, thick) {
  for (let d = 1; d <= thick; d++) for (const [v, u] of [[y - d, x], [y + d, x], [y, x - d], [y, x + d]])
    if (v < 0 || u < 0 || v >= height || u >= width || !mask[v * width + u]) return true
  return false
}

function draw() {
  const { image: { pixels, height, width }, probability } = state, threshold = Number($("threshold").value)
  $("level").textContent = threshold.toFixed(2)
  const mask = state.mask = Uint8Array.from(probability, p => p > threshold)
  const picture = new ImageData(new Uint8ClampedArray(pixels), width, height), heat = new ImageData(width, height)
  const thick = Math.max(1, Math.round(Math.min(height, width) / 128))
  let count = 0
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
    heat.data.set([...color(probability[i]), 255], 4 * i)
    if (!mask[i]) continue
    count++
    const strength = onRim(mask, y, x, height, width, thick) ? 1 : 0.25
    ;[204, 121, 167].forEach((v, k) => { picture.data[4 * i + k] = (1 - strength) * pixels[4 * i + k] + strength * v })
  }
  for (const [id, data] of [["picture", picture], ["heat", heat]]) {
    Object.assign($(id), { width, height })
    $(id).getContext("2d").putImageData(data, 0, 0)
  }
  const share = (100 * count / mask.length).toFixed(1), words = count ? `The mask covers ${share} % of the image.` : "No pixel is above the threshold."
  $("picture").setAttribute("aria-label", `${state.image.name}. ${words}`)
  say(`${words} The network took ${state.milliseconds.toFixed(0)} ms for ${width} x ${height} pixels.`)
  offer(mask, width, height)
}

// The mask as a PNG of 0 and 255, made here.
function offer(mask, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height }), data = new ImageData(width, height)
  mask.forEach((m, i) => data.data.set([255 * m, 255 * m, 255 * m, 255], 4 * i))
  canvas.getContext("2d").putImageData(data, 0, 0)
  const turn = ++state.offered
  canvas.toBlob(blob => {
    if (turn !== state.offered) return
    URL.revokeObjectURL($("save").href)
    Object.assign($("save"), { href: URL.createObjectURL(blob), hidden: false })
  })
}

async function read(source, name) {
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none" })
  const { width, height } = bitmap
  if (Math.min(width, height) < 16 || width * height > 4e7) throw new Error(`${name} has ${width} x ${height} pixels; this page takes 16 pixels a side to 40 million in all.`)
  const canvas = Object.assign(document.createElement("canvas"), { width, height })
  const context = canvas.getContext("2d", { willReadFrequently: true })
  context.drawImage(bitmap, 0, 0)
  return { pixels: context.getImageData(0, 0, width, height).data, width, height, name }
}

// The image that was chosen last is shown, whichever arrives first, with weights that have seen such images unless the reader has chosen some.
async function show(opened, name, suggested) {
  const choice = ++state.choice
  let image
  try {
    image = await read(await opened(), name)
    await about  // a file may come before it
  } catch (error) {
    if (choice === state.choice) throw error
  }
  if (choice !== state.choice) return
  state.image = image
  forget()
  const weights = state.about.networks.find(one => one.name === suggested)
  await (state.chosen || !weights || weights === state.weights ? compute() : take(weights))
}

const failed = error => say(error.message || String(error), true)

async function fetched(file) {
  const answer = await fetch(file)
  if (!answer.ok) throw new Error(`${file} is not there (${answer.status}): the page was built without it.`)
  return answer.blob()
}

const scan = (file, name) => show(() => fetched(file), name, "phantom")

// The network with other weights; the image that is shown is computed again.
async function take(weights) {
  state.turn++  // what is being computed is of other weights
  Object.assign(state, { weights, session: null })
  forget()
  $("words").textContent = weights.words
  document.querySelectorAll("[name=weights]").forEach(input => { input.checked = input.value === weights.name })
  if (!state.ort) return  // the engine is on its way, and `begin` takes these weights up
  if (!sessions.has(weights.file)) {
    say("The network is being fetched ...")
    sessions.set(weights.file, state.ort.InferenceSession.create(weights.file, { executionProviders: ["wasm"] }))
  }
  const session = await sessions.get(weights.file).catch(error => { sessions.delete(weights.file); throw error })
  if (state.weights !== weights) return  // others were chosen meanwhile
  state.session = session
  await compute()
}

function choices(networks) {
  for (const weights of networks) {
    const label = document.createElement("label"), input = document.createElement("input")
    Object.assign(input, { type: "radio", name: "weights", value: weights.name })
    input.addEventListener("change", () => { state.chosen = true; take(weights).catch(failed) })
    label.append(input, weights.label)
    $("weights").append(label)
  }
}

function menu(scans) {
  for (const [i, file] of scans.entries()) {
    const label = document.createElement("label"), input = document.createElement("input"), picture = document.createElement("img")
    Object.assign(input, { type: "radio", name: "scan", checked: i === 0 && !state.choice })
    Object.assign(picture, { src: file, alt: "", width: 72, height: 72 })
    input.addEventListener("change", () => { $("file").value = ""; scan(file, `Scan ${i + 1}`).catch(failed) })
    label.append(input, picture, `Scan ${i + 1}`)
    $("scans").append(label)
  }
}

async function begin() {
  state.about = await about
  const folder = engineFolder()
  menu(state.about.scans)
  choices(state.about.networks)
  $("side").textContent = state.about.size
  try { state.ort = await import(`${folder}ort.wasm.min.mjs`) }
  catch { throw new Error(`The engine could not be fetched from ${new URL(folder, location.href).host}. Check the connection and load the page again.`) }
  state.ort.env.wasm.wasmPaths = folder
  state.ort.env.wasm.numThreads = 1  // several need headers that a plain server does not send
  await take(state.weights ?? state.about.networks[0])
  if (!state.choice) await scan(state.about.scans[0], "Scan 1")
  else if (!state.image) say("The network is ready and waits for an image: a scan, or a PNG or JPEG.")
  state.ready = true
}

$("threshold").addEventListener("input", () => { $("level").textContent = Number($("threshold").value).toFixed(2); if (state.probability) draw() })
$("file").addEventListener("change", () => {
  const [file] = $("file").files
  if (!file) return
  document.querySelectorAll("[name=scan]").forEach(input => { input.checked = false })
  show(() => file, file.name, "busi").catch(error => failed(error.name === "InvalidStateError" ? new Error(`${file.name} cannot be read as an image: choose a PNG or JPEG.`) : error))
})
begin().catch(failed)
