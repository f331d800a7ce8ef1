// Keeps what is typed, also while the server is away: see typing_saver.py. One for each window.
const PAUSE = 400, SETTLING = 1000, AGAIN = 2000, LATE = 4000, PATIENCE = 20000 // milliseconds
const MOST_OWN = 40000 // characters of the texts that a field had
const DRAFT = '[class*="st-key-form-"]:not(.st-key-form-find), [class*="st-key-caption-"]'
const TYPED = ".stTextInput, .stTextArea, .stNumberInput"
const KEPT = `${DRAFT}, .st-key-config-text, .st-key-command-text, .st-key-sql`
const STORE = "fluxgym.typed"

export default function ({ data, setTriggerValue }) {
  window.fluxgymSaver ??= begin()
  window.fluxgymSaver(data, setTriggerValue)
}

const isNumber = field => field instanceof HTMLInputElement && field.type === "number"
const isText = field => field instanceof HTMLTextAreaElement || (field instanceof HTMLInputElement && field.type === "text")
// A number is committed only where it reads as it was typed: of "0." or "0.50" on the way to "0.505" the form would make
// another one under the person's hands.
const isHalf = field => isNumber(field) && String(Number(field.value)) !== field.value
const isAway = () => document.querySelector(".stApp")?.dataset.testConnectionState !== "CONNECTED"

// A field of the draft by a name that the server knows, or nothing.
function nameOf(field) {
  const place = field && (isNumber(field) || isText(field)) && field.closest(TYPED) && field.closest(DRAFT)
  if (!place) return "" // the word that narrows a list down is none, for one
  const form = /st-key-form-(\w+)/.exec(place.className)
  return form ? `form.${form[1]}` : field.ariaLabel
}

function begin() {
  // What was typed and is not known to be on the disk: name → { draft, base, text, caret, at }; and every text that a
  // field had under these hands: a connection that broke may have brought any of them to the disk, and what is found
  // there is nobody else's then. Both outlive a reload.
  let typed = {}, own = {}
  try {
    ({ typed = {}, own = {} } = JSON.parse(sessionStorage.getItem(STORE)) ?? {})
  } catch { /* nothing, then */ }
  let draft = null, session = null, began = 0, asks = false, holding = 0, tellNow = null
  const timers = new WeakMap(), before = new WeakMap(), putBack = new WeakSet()
  const isMine = entry => entry.draft === draft || !entry.draft
  const mine = () => Object.entries(typed).filter(([, entry]) => isMine(entry))
  const fields = () => [...document.querySelectorAll("input, textarea")]
  const remember = () => {
    try {
      sessionStorage.setItem(STORE, JSON.stringify({ typed, own }))
    } catch { /* full, or forbidden: it stays in memory */ }
  }

  // Streamlit commits a field when it loses the focus: it is told that, and that it is back. A key pressed for the
  // person, as Ctrl+Enter, would also press the button that has it as its shortcut.
  function commit(field) {
    const isLeft = document.activeElement !== field
    for (const what of isLeft ? ["focusout"] : ["focusout", "focusin"])
      field.dispatchEvent(new FocusEvent(what, { bubbles: true }))
  }

  // A new server's first drawing shows what is on the disk: what was typed since goes back into its field.
  function put(field, { text, caret }) {
    const kind = field instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, text)
    const isHere = field === document.activeElement || nameOf(field) === typing
    if (caret !== null && isHere) field.setSelectionRange(caret, caret)
    putBack.add(field) // it is committed although nobody is in it
    field.dispatchEvent(new Event("input", { bubbles: true }))
  }

  function keepHolding() {
    if (!holding) requestAnimationFrame(hold)
    holding = performance.now() + PATIENCE
  }

  function hold() {
    if (performance.now() > holding) return (holding = 0)
    for (const field of fields()) {
      const name = nameOf(field), entry = typed[name]
      if (entry && isMine(entry) && field.value !== entry.text) put(field, entry)
      if (name && name === typing && document.activeElement === document.body) field.focus({ preventScroll: true })
    }
    requestAnimationFrame(hold)
  }

  // The field that the person types in, until a click or a key leads elsewhere. A drawing that makes it anew, and the
  // window that Streamlit lays over the page, take the focus under a person's hands: what is typed then goes in there.
  let typing = ""
  document.addEventListener("pointerdown", () => (typing = ""), true)
  document.addEventListener("focusin", ({ target }) => (typing = nameOf(target) || (isText(target) ? "" : typing)), true)
  document.addEventListener("keydown", event => {
    if (event.key === "Tab" || event.key === "Escape") typing = ""
    if (!typing || !(holding || isAway()) || nameOf(document.activeElement) === typing) return
    if (event.key.length !== 1 || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return
    const field = fields().find(one => nameOf(one) === typing)
    if (!field) return
    event.preventDefault()
    event.stopPropagation()
    const text = typed[typing]?.text ?? field.value, caret = field.selectionStart ?? text.length
    if (!typed[typing]) before.set(field, text)
    put(field, { text: text.slice(0, caret) + event.key + text.slice(caret), caret: isNumber(field) ? null : caret + 1 })
  }, true)

  document.addEventListener("beforeinput", event => {
    const field = event.target, name = nameOf(field)
    if (!name) return
    const entry = typed[name]
    if (!entry) before.set(field, field.value)
    else if ((holding || isAway()) && isMine(entry) && field.value !== entry.text) put(field, entry)
  }, true)

  document.addEventListener("input", event => {
    const field = event.target, number = isNumber(field), name = nameOf(field)
    if (name && draft !== null) {
      const entry = typed[name], base = entry?.base ?? before.get(field) ?? ""
      const texts = (own[name] ??= [])
      texts.push(...(entry ? [] : [base]), field.value)
      for (let size = texts.reduce((sum, one) => sum + one.length, 0); size > MOST_OWN; ) size -= texts.shift().length
      typed[name] = { draft, base, text: field.value, caret: field.selectionStart, at: Date.now() }
      // An empty number is none, and what is as it was needs no keeping.
      if ((number && !field.value) || field.value === base) delete typed[name]
      remember()
    }
    if (event.isComposing || !(number || field instanceof HTMLTextAreaElement) || !field.closest(KEPT)) return
    clearTimeout(timers.get(field))
    timers.set(field, setTimeout(() => {
      if (!isHalf(field) && (document.activeElement === field || putBack.delete(field))) commit(field)
    }, PAUSE))
  }, true)

  // Streamlit locks every field while the server is away, and what is typed on is gone with the focus. The draft's stay
  // open, and the one that was locked under the person's hands has the focus again.
  let locked = null
  document.addEventListener("focusout", ({ target }) => {
    if (target.disabled) locked = target
  }, true)
  new MutationObserver(changes => {
    for (const { target, attributeName } of changes) {
      // The first drawing of a new server comes a while before it is heard here that it is one.
      if (attributeName !== "disabled" && !isAway()) keepHolding()
      if (!target.disabled || !isAway() || !nameOf(target)) continue
      target.disabled = false
      if (target !== locked) continue
      target.focus({ preventScroll: true })
      locked = null
    }
  }).observe(document.documentElement, { subtree: true, attributeFilter: ["disabled", "data-test-connection-state"] })

  // After three seconds Streamlit lays a window over the page, which takes the focus: a line at the edge says it too.
  document.addEventListener("focusin", ({ target, relatedTarget }) => {
    const opened = draft !== null && isAway() && target.closest?.('[data-testid="stDialog"]')
    if (!opened || opened.querySelector("h2")?.textContent !== "Connection error") return
    opened.querySelector('[aria-label="Close"]')?.click()
    setTimeout(() => nameOf(relatedTarget) && relatedTarget.focus({ preventScroll: true }))
    if (document.querySelector(".fg-away")) return
    const line = Object.assign(document.createElement("div"), { className: "fg-away", role: "status" })
    line.textContent = "The server does not answer. What you type here is kept, and goes in when it is back."
    document.querySelector(".stApp").append(line)
    const gone = setInterval(() => isAway() || (line.remove(), clearInterval(gone)), 300)
  })

  // To the server, through the component as it was drawn last: one of before is gone with its drawing.
  function tell(left) {
    const told = ([name, entry]) => [name, { base: entry.base, text: typed[name]?.text ?? entry.text }]
    tellNow?.("typed", { left: Object.fromEntries(left.map(told)), own, isNew: Date.now() - began < PATIENCE })
  }

  // What the server has not said to be kept is told again for a while, and what it asked for until it has it: of two
  // drawings that come close together one takes with it what was told through the other. What is being typed comes by
  // itself.
  setInterval(() => {
    const now = Date.now(), half = nameOf(isHalf(document.activeElement) && document.activeElement)
    if (isAway() || now - began < LATE) return
    const isLate = ([name, { at }]) => name !== half && now - at > LATE && now - Math.max(at, began) < PATIENCE
    const left = mine().filter(isLate)
    if (left.length || asks) tell(left)
  }, AGAIN)

  return (data, newest) => {
    tellNow = data.draft === null ? null : newest
    if (data.draft === null) return // a page without one
    if (draft && draft !== data.draft) own = {}
    draft = data.draft
    asks = data.asks // whether some text is this window's own
    if (asks) setTimeout(() => tell([]))
    const left = mine() // what is acknowledged by now is told too: another tab may have written over the same
    for (const [name, value] of Object.entries(data.kept)) {
      const text = typed[name]?.text
      if (text !== undefined && (typeof value === "number" ? Number(text) === value : text === value)) delete typed[name]
    }
    remember()
    if (session === data.session) return
    session = data.session
    began = Date.now()
    if (!left.length) return
    keepHolding()
    setTimeout(() => tell(left), SETTLING) // once all is drawn, and what is shown has been committed
  }
}
