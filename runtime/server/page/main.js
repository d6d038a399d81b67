// The page: what people do, and what happens then.

import { Refusal, Server } from "./api.js";
import { Camera } from "./camera.js";
import { Found } from "./found.js";
import { addedStages, gateText, History, milliseconds, showCrops, showRegions, showStages } from "./panels.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const EXAMPLE_QUESTION = "what is the code on the yellow tag ?";
const WIDE = window.matchMedia("(min-width: 60rem)"); // as in style.css

const server = new Server();
const view = new View($("canvas"), $("stage"));
const state = {
  picture: null, // {blob, bitmap}
  question: "",
  found: null, // by the last look
  answer: null, // {text, extras, stages, done}
  threshold: null, // of the slider; null: the model's own
  own: null, // the model's own
  running: null, // what can be stopped
};
const history = new History($("history"), $("history-part"), restore);
const camera = new Camera($("video"), {
  look: lookAtFrame,
  rate: (perSecond) => ($("rate").textContent = perSecond ? `${perSecond.toFixed(1)} looks per second` : ""),
  ended: showCameraState,
});

// --- what is said

function say(text) {
  $("status").textContent = text;
}

function showProblem(error) {
  const place = $("problem");
  place.hidden = error === null;
  if (error === null) return;
  const later = error.retryAfterS ? ` Try again in ${error.retryAfterS} s.` : "";
  place.textContent = `${error.message}${later}`;
  if (error.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

// --- the picture

async function usePicture(blob) {
  stopRunning();
  showProblem(null);
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    showProblem(new Error("This browser cannot show such a file; the model may still read it."));
  }
  $("mode-picture").checked = true;
  showMode();
  Object.assign(state, { picture: { blob, bitmap }, found: null, answer: null, threshold: null });
  showAll();
  say(bitmap ? `A picture of ${bitmap.width} × ${bitmap.height} pixels.` : "");
  $("question").focus();
}

async function useExample() {
  const reply = await fetch("/page/example.png");
  await usePicture(await reply.blob());
  if (!$("question").value) $("question").value = EXAMPLE_QUESTION;
}

function firstPicture(files) {
  return [...files].find((file) => file.type.startsWith("image/")) ?? files[0] ?? null;
}

// --- questions

function stopRunning() {
  state.running?.abort();
  state.running = null;
}

/** Look, show where, and stream the answer. threshold: null: the model's own. */
async function ask(question, threshold = null) {
  if (!state.picture) {
    say("Choose a picture first.");
    return;
  }
  stopRunning();
  const running = new AbortController();
  const { signal } = running;
  const { picture } = state;
  const roi = threshold === null ? {} : { threshold };
  Object.assign(state, { running, question, found: null, threshold, answer: { text: "", extras: null, done: false } });
  showProblem(null);
  showAll();
  try {
    say("Looking…");
    const looked = await lookIfItCan(picture.blob, question, roi, signal);
    if (signal.aborted) return;
    state.found = looked;
    if (looked && threshold === null) state.own = looked.policy.threshold;
    showAll();
    say("Answering…");
    const piece = (text) => {
      state.answer.text += text;
      showAnswer();
    };
    const answer = await server.answer(picture.blob, question, { roi, signal, piece });
    if (signal.aborted) return;
    state.answer = { ...answer, done: true, stages: addedStages(looked?.reply.stages, answer.extras?.stages) };
    const cutOff = answer.finish === "length" ? " It was cut off at its limit." : "";
    say(`Answered in ${milliseconds(state.answer.stages.total_s ?? 0)}.${cutOff}`);
    history.add({ ...state, text: answer.text, picture: picture.bitmap, file: picture });
  } catch (error) {
    if (signal.aborted) return;
    state.answer = state.answer.text ? { ...state.answer, done: true } : null;
    say("");
    showProblem(error);
  } finally {
    if (state.running === running) state.running = null;
    if (!signal.aborted) showAll();
  }
}

/** A look; null for a model that has no map, which answers all the same. */
async function lookIfItCan(blob, question, roi, signal) {
  try {
    return new Found(await server.look(blob, question, { roi, signal }));
  } catch (error) {
    if (error instanceof Refusal && error.status === 400) return null;
    throw error;
  }
}

function restore(entry) {
  stopRunning();
  camera.stop();
  $("mode-picture").checked = true;
  showMode();
  const { question, found, answer, threshold } = entry;
  Object.assign(state, { picture: entry.file, question, found, answer, threshold });
  $("question").value = question;
  showProblem(null);
  showAll();
  say("Shown again from this session.");
}

// --- the camera

async function startCamera() {
  showProblem(null);
  if (!$("question").reportValidity()) return;
  state.question = $("question").value.trim();
  if (camera.runs) return;
  Object.assign(state, { found: null, answer: null });
  try {
    await camera.start();
    say("Looking at what the camera sees.");
  } catch (error) {
    showProblem(new Error(`The camera cannot be used: ${error.message}`));
  }
  showCameraState();
  showAll();
}

async function lookAtFrame(blob) {
  try {
    const reply = await server.look(blob, state.question);
    if (!camera.runs) return false;
    state.found = new Found(reply);
    state.own = state.found.policy.threshold;
    showProblem(null);
    showAll();
    return true;
  } catch (error) {
    showProblem(error);
    if (error.status === 401) camera.stop();
    return false;
  }
}

async function keepFrame() {
  const frame = await camera.frame();
  const { question } = state;
  camera.stop();
  await usePicture(frame);
  await ask(question);
}

function showCameraState() {
  const { runs } = camera;
  $("camera-start").hidden = runs;
  $("camera-stop").hidden = !runs;
  $("camera-keep").disabled = !runs;
  $("video").hidden = !runs;
  if (!runs) {
    $("rate").textContent = "";
    if (isLive()) {
      state.found = null;
      showAll();
      say("");
    }
  }
}

function isLive() {
  return $("mode-camera").checked;
}

/** The details of the picture stand below it, on a phone below the answer: also for the keyboard and screen readers. */
function placeDetails() {
  if (WIDE.matches) document.querySelector(".view").append($("details"));
  else $("answer-part").after($("details"));
}

function showMode() {
  const live = isLive();
  if (!live && camera.runs) camera.stop();
  $("picture-bar").hidden = live;
  $("camera-bar").hidden = !live;
  $("ask").textContent = live ? "Look for it" : "Ask";
  $("canvas").classList.toggle("above", live);
  $("view-title").textContent = live ? "Camera" : "Picture";
}

// --- what is shown

function showAll() {
  showPicture();
  showAnswer();
}

function threshold() {
  return state.threshold ?? state.own ?? state.found?.policy.threshold ?? Number($("threshold").value);
}

function showPicture() {
  const { found } = state;
  const live = isLive();
  const picture = live ? null : (state.picture?.bitmap ?? null);
  const shown = found ? found.under(threshold()) : { boxes: [], leftOut: [], note: "" };
  $("lead").hidden = state.picture !== null || live;
  $("invitation").hidden = live ? camera.runs : state.picture !== null;
  const imageWh = found?.imageWh ?? (picture ? [picture.width, picture.height] : null);
  const withBoxes = $("show-boxes").checked;
  view.show(
    imageWh && {
      picture,
      imageWh,
      square: found?.covered ?? [0, 0, ...imageWh],
      map: found?.map ?? null,
      heat: $("show-heat").checked,
      boxes: withBoxes ? shown.boxes.map(({ box }) => box) : [],
      leftOut: withBoxes ? shown.leftOut.filter(({ box }) => box) : [],
    },
  );
  $("canvas").setAttribute("aria-label", canvasLabel(live, imageWh, found && shown));
  $("controls").hidden = !found;
  $("regions").hidden = !found;
  if (!found) return;
  showThreshold(found);
  showRegions($("regions-list"), $("regions-note"), shown, shown.note);
}

function canvasLabel(live, imageWh, shown) {
  if (!imageWh) return "No picture yet";
  const what = `${live ? "Camera" : "Picture"}, ${imageWh[0]} by ${imageWh[1]} pixels`;
  if (!shown) return what;
  const places = shown.boxes.map(({ box: [x1, y1, x2, y2] }) => `from ${x1}, ${y1} to ${x2}, ${y2}`);
  return `${what}. ${places.length ? `Regions: ${places.join("; ")}` : "No region"}`;
}

function showThreshold(found) {
  const value = threshold();
  $("threshold").disabled = !found.canMove;
  $("threshold").value = value;
  $("threshold-value").textContent = value.toFixed(2);
  const differs = (other) => Math.abs(value - other) > 1e-9;
  $("threshold-own").hidden = !differs(state.own ?? found.policy.threshold);
  $("again").hidden = !differs(found.policy.threshold) || isLive() || !state.answer;
  $("threshold-about").textContent = found.canMove
    ? "Cells of the map above it become regions. Moving it asks nothing of the model."
    : "This model's threshold is a share of its highest score; it cannot be moved here.";
}

function showAnswer() {
  const { answer, question } = state;
  const shown = answer !== null && !isLive();
  for (const part of ["answer-part", "crops-part", "stages-part"]) $(part).hidden = !shown;
  const busy = shown && !answer.done;
  $("stop").hidden = !busy;
  $("ask").hidden = busy;
  $("answer").setAttribute("aria-busy", String(busy));
  if (!shown) return;
  const extras = answer.extras;
  $("asked").textContent = question;
  $("answer").textContent = answer.text;
  $("answer-note").textContent = extras?.note ?? "";
  $("answer-note").hidden = !extras?.note;
  $("gate").textContent = gateText(extras?.gate ?? state.found?.look.gate, state.found?.policy.gate_threshold);
  $("gate").hidden = !$("gate").textContent;
  const boxes = extras?.boxes.map((region) => region.xyxy_px) ?? [];
  $("crops-part").hidden = !boxes.length || !state.picture.bitmap;
  if (!$("crops-part").hidden) showCrops($("crops"), state.picture.bitmap, boxes);
  $("stages-part").hidden = !answer.stages;
  if (answer.stages) showStages($("stages-bar"), $("stages").tBodies[0], answer.stages);
}

// --- the slider

function moveThreshold() {
  state.threshold = Number($("threshold").value);
  showPicture();
}

function resetThreshold() {
  $("threshold").value = state.own ?? state.found.policy.threshold;
  moveThreshold();
  $("threshold").focus();
}

// --- what people do

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (isLive()) startCamera();
  else ask($("question").value.trim());
});
$("stop").addEventListener("click", () => {
  stopRunning();
  state.answer.done = true;
  say("Stopped.");
  showAll();
  $("question").focus();
});
$("again").addEventListener("click", () => ask(state.question, state.threshold));
for (const id of ["file", "photo"]) {
  $(id).addEventListener("change", (event) => {
    const file = firstPicture(event.target.files);
    if (file) usePicture(file);
    event.target.value = ""; // the same file can be chosen again
  });
}
$("example").addEventListener("click", () => useExample().catch(showProblem));
$("threshold").addEventListener("input", moveThreshold);
$("threshold-own").addEventListener("click", resetThreshold);
$("show-heat").addEventListener("change", showPicture);
$("show-boxes").addEventListener("change", showPicture);
$("history-clear").addEventListener("click", () => {
  history.clear();
  $("question").focus();
});
for (const mode of ["mode-picture", "mode-camera"]) {
  $(mode).addEventListener("change", () => {
    stopRunning();
    Object.assign(state, { found: null, answer: null, threshold: null });
    showMode();
    showAll();
    say("");
  });
}
$("camera-start").addEventListener("click", startCamera);
$("camera-stop").addEventListener("click", () => camera.stop());
$("camera-keep").addEventListener("click", () => keepFrame().catch(showProblem));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  server.useKey($("key").value);
  $("key").value = "";
  $("key-form").hidden = true;
  showProblem(null);
  connect();
});

document.addEventListener("paste", (event) => {
  const file = firstPicture(event.clipboardData?.files ?? []);
  if (!file) return; // text goes into the field
  event.preventDefault();
  usePicture(file);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("stage").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop" || event.relatedTarget === null) $("stage").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => {
  const file = firstPicture(event.dataTransfer?.files ?? []);
  if (file) usePicture(file);
});

async function connect() {
  try {
    $("model").textContent = await server.modelName();
  } catch (error) {
    $("model").textContent = "not connected";
    showProblem(error);
  }
}

WIDE.addEventListener("change", placeDetails);
placeDetails();
showMode();
connect();
