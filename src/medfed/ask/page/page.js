// Drop or choose files, see them, ask. The server keeps nothing: the files are sent again with every question.
const at = (id) => document.getElementById(id);
const [drop, input, form, question, answers, look, output] = ["drop", "files", "form", "question", "answers", "look", "reply"].map(at);
const MAX_BYTES = 45 * 2 ** 20;
let files = [];
let chosen = { task: "", question: "" };
let latest = 0;

const ending = (file) => file.name.toLowerCase().split(".").pop();
const isEcg = (file) => ["hea", "dat"].includes(ending(file));

function encoded(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name, data: reader.result.slice(reader.result.indexOf(",") + 1) });
    reader.onerror = () => reject(new Error("the browser cannot read the file"));
    reader.readAsDataURL(file);
  });
}

async function send(path, content) {
  const body = JSON.stringify({ files: await Promise.all(files.map(encoded)), ...content });
  const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const reply = await response.json().catch(() => ({ what: "The answer cannot be read" }));
  if (!response.ok) throw Object.assign(new Error(reply.what), { hint: reply.hint });
  return reply;
}

function trouble(place, error) {
  const [box, what, hint] = ["div", "p", "p"].map((name) => document.createElement(name));
  box.className = "banner alarm trouble";
  box.setAttribute("role", "alert");
  what.textContent = error instanceof TypeError ? "medfed no longer answers; is the command still running?" : error.message;
  hint.textContent = error.hint ? `Next step: ${error.hint}` : "";
  hint.className = "small";
  box.append(what, hint);
  place.replaceChildren(box);
}

async function during(place, work) {
  const mine = ++latest;
  place.classList.add("busy");
  try {
    const reply = await work();
    if (mine === latest) return reply;
  } catch (error) {
    if (mine === latest) trouble(place, error);
  } finally {
    place.classList.remove("busy");
  }
  return null;
}

async function take(list) {
  const added = [...list];
  if (!added.length) return;
  // The second file of an ECG joins the first; any other file takes the place of what was there.
  const joins = files.length === 1 && added.length === 1 && isEcg(files[0]) && isEcg(added[0]) && ending(files[0]) !== ending(added[0]);
  files = joins ? [...files, ...added] : added;
  at("names").textContent = files.map((file) => file.name).join(", ");
  at("names").hidden = false;
  drop.classList.add("full");
  at("ask").disabled = true;
  output.replaceChildren();
  at("questions").replaceChildren();
  if (question.value === chosen.question) question.value = ""; // it was about another file
  const size = files.reduce((sum, file) => sum + file.size, 0);
  if (size > MAX_BYTES) return trouble(look, Object.assign(new Error("The files are too large for the page"), { hint: "use medfed predict" }));
  const reply = await during(look, () => send("/look", {}));
  if (!reply) return;
  look.innerHTML = reply.look;
  at("questions").innerHTML = reply.questions;
  at("ask").disabled = false;
  const only = at("questions").querySelectorAll(".chip");
  if (only.length && !question.value.trim()) choose(only[0]);
}

function choose(chip) {
  chosen = { ...chip.dataset };
  question.value = chosen.question;
  mark();
}

function mark() {
  for (const chip of document.querySelectorAll(".chip")) {
    const pressed = chip.dataset.task === chosen.task && question.value.trim() === chosen.question;
    chip.setAttribute("aria-pressed", String(pressed));
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (at("ask").disabled) return;
  const known = document.querySelector('.chip[aria-pressed="true"]');
  const content = { question: question.value, answers: answers.value, task: known ? known.dataset.task : "" };
  at("ask").disabled = true;
  at("ask").textContent = "Asking …";
  const reply = await during(output, () => send("/ask", content));
  at("ask").disabled = false;
  at("ask").textContent = "Ask";
  if (reply) output.innerHTML = reply.answer;
});
at("questions").addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (chip) choose(chip);
});
question.addEventListener("input", mark);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
input.addEventListener("change", () => {
  take(input.files);
  input.value = ""; // the same file again is a change too
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
