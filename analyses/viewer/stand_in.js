
// A page has no Python: this model keeps what it is told, and tells those who listen.
const kept = { data: JSON.parse(document.getElementById("data").textContent), selected: [] };
const listeners = {};
const model = {
  get: (name) => kept[name],
  set: (name, value) => {
    kept[name] = value;
    (listeners[`change:${name}`] ?? []).forEach((listener) => listener());
  },
  on: (event, listener) => (listeners[event] ??= []).push(listener),
  off: (event, listener) => {
    listeners[event] = (listeners[event] ?? []).filter((one) => one !== listener);
  },
  save_changes: () => {},
};
viewer.render({ model, el: document.getElementById("viewer") });
document.body.dataset.ready = "yes";
