// Keeps what is typed, also while the server is away: see typing_saver.py. One for each window.
// Milliseconds.
const PAUSE = 400, SETTLING = 1000, AGAIN = 2000, LATE = 4000, PATIENCE = 20000, LONG = 30000, SELDOM = 60000
const MOST_OWN = 40000 // characters of the texts that a field had
const DRAFT = '[class*="st-key-form-"]:not(.st-key-form-find), [class*="st-key-caption-"]'
const TYPED = ".stTextInput, .stTextArea, .stNumberInput"
const KEPT = `${DRAFT}, .st-key-config-text, .st-key-command-text, .st-key-sql`
const LEFT = `${KEPT}, .st-key-about-title, .st-key-about-note` // not at a pause: each time is a line in the run's log
const STORE = "fluxgym.typed"

export default function ({ data, setTriggerValue }) {
  window.fluxgymSaver ??= begin()
  window.fluxgymSaver.draw(data, setTriggerValue)
  return () => window.fluxgymSaver.leave(setTriggerValue)
}

const isNumber = field => field instanceof HTMLInputElement && field.type === "number"
const isText = field => field instanceof HTMLTextAreaElement || (field instanceof HTMLInputElement && field.type === "text")
// A number is committed only where it reads as it was typed: of "0." or "0.50" on the way to "0.505" the form would make
// another one under the person's hands.
const isHalf = field => isNumber(field) && String(Number(field.value)) !== field.value
const stateOf = what => document.querySelector(".stApp")?.dataset[what]
const isAway = () => stateOf("testConnectionState") !== "CONNECTED"

// A field of the draft by a name that the server knows, or nothing.
function nameOf(field) {
  const place = field && (isNumber(field) || isText(field)) && field.closest(TYPED) && field.closest(DRAFT)
  if (!place) return "" // the word that narrows a list down is none, for one
  const form = /st-key-form-(\w+)/.exec(place.className)
  return form ? `form.${form[1]}` : field.ariaLabel
}

function begin() {
  // What was typed and is not known to be on the disk: name → { draft, base, text, caret, at, next }. And the texts that
  // a field had under these hands, until half a minute after the last one was said to be kept: a connection that broke
  // may have brought any of them to the disk, and what is found there is nobody else's then. Both outlive a reload.
  let typed = {}, own = {}, ownDraft = null
  try {
    ({ typed = {}, own = {}, ownDraft = null } = JSON.parse(sessionStorage.getItem(STORE)) ?? {})
  } catch { /* nothing, then */ }
  let draft = null, session = null, began = 0, asks = false, holding = 0, tellNow = null
  const timers = new WeakMap(), before = new WeakMap(), putBack = new WeakSet(), keptAt = {}
  const isMine = entry => entry.draft === draft || !entry.draft
  const entryOf = name => (typed[name] && isMine(typed[name]) ? typed[name] : undefined)
  const mine = () => Object.entries(typed).filter(([, entry]) => isMine(entry))
  const fields = () => [...document.querySelectorAll("input, textarea")]
  const remember = () => {
    try {
      sessionStorage.setItem(STORE, JSON.stringify({ typed, own, ownDraft }))
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
    if (mine().length || typing)
      for (const field of fields()) {
        const name = nameOf(field), entry = entryOf(name)
        if (entry && field.value !== entry.text) put(field, entry)
        if (name && name === typing && !typingIn.isConnected && document.activeElement === document.body) enter(field)
      }
    requestAnimationFrame(hold)
  }

  // The field that the person types in, until a click or a key leads elsewhere. A drawing that makes it anew, and the
  // window that Streamlit lays over the page, take the focus under a person's hands: what is typed then goes in there.
  let typing = "", typingIn = null
  function typesIn(field) {
    typing = nameOf(field)
    if (typing) typingIn = field
  }

  function enter(field) {
    field.focus({ preventScroll: true }) // one that had it before knows its caret
    const caret = entryOf(typing)?.caret ?? null
    if (field !== typingIn && caret !== null) field.setSelectionRange(caret, caret)
    typingIn = field
  }

  document.addEventListener("pointerdown", ({ target }) => typesIn(target), true)
  document.addEventListener("focusin", ({ target }) => (nameOf(target) || isText(target)) && typesIn(target), true)
  // A shortcut presses a button without leaving the field, Escape takes its dialog away: what stands in it goes first.
  document.addEventListener("keydown", ({ key, altKey, ctrlKey, metaKey }) => {
    const field = document.activeElement
    const leaves = key === "Escape" || (key === "Enter" && (altKey || ctrlKey || metaKey))
    if (leaves && isText(field) && field.closest(LEFT)) commit(field)
  }, true)

  // A tag that was typed and not yet added would be gone with a click elsewhere.
  document.addEventListener("pointerdown", ({ target }) => {
    const field = document.activeElement
    if (!field?.closest(".st-key-about-tags") || !isText(field) || target.closest?.('[role="listbox"]')) return
    const text = field.value.trim()
    if (!text) return
    const offered = [...document.querySelectorAll('[role="option"]')]
    offered.find(one => [text, `Add: ${text}`].includes(one.textContent.trim()))?.click()
  }, true)

  // Tab leads from field to field; the explanations between them are reached backwards.
  function onToTheNextField(event) {
    const field = document.activeElement
    if (event.key !== "Tab" || event.isComposing || event.shiftKey || event.ctrlKey || event.altKey || !nameOf(field)) return
    const all = [...document.querySelectorAll("a[href], button, input, textarea, summary, [tabindex]")]
    const stops = all.filter(one => one.tabIndex >= 0 && !one.disabled && one.getClientRects().length)
    const next = stops.slice(stops.indexOf(field) + 1).find(one => !one.closest(".stTooltipIcon"))
    if (!next) return
    event.preventDefault()
    next.focus()
    if (next instanceof HTMLInputElement && nameOf(next)) next.select()
  }

  document.addEventListener("keydown", event => {
    if (event.key === "Tab" || event.key === "Escape") typing = ""
    onToTheNextField(event)
    const here = document.activeElement, isTaken = here === document.body || here.closest('[data-testid="stDialog"]')
    if (!typing || !isTaken || !(holding || isAway())) return
    const field = fields().find(one => nameOf(one) === typing)
    if (field) enter(field) // before the key does what it does
  }, true)

  document.addEventListener("beforeinput", event => {
    const field = event.target, name = nameOf(field)
    if (!name) return
    const entry = entryOf(name)
    if (!entry) before.set(field, field.value)
    else if ((holding || isAway()) && field.value !== entry.text) put(field, entry)
  }, true)

  document.addEventListener("input", event => {
    const field = event.target, number = isNumber(field), name = nameOf(field)
    if (name && draft !== null) {
      const entry = entryOf(name), texts = (own[name] ??= []), at = Date.now()
      const base = entry?.base ?? (number && !before.get(field) ? texts[0] : before.get(field)) ?? ""
      texts.push(...(entry ? [] : [base]), field.value)
      let size = texts.reduce((sum, one) => sum + one.length, 0)
      while (size > MOST_OWN && texts.length > 1) size -= texts.shift().length
      typed[name] = { draft, base, text: field.value, caret: field.selectionStart, at, next: at + LATE }
      if (number && !field.value) delete typed[name] // none
      typesIn(field)
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

  // To the server, through the component as it was drawn last. What it has said to be kept since is not to be kept once
  // more, for the person may have typed on; but another tab may have written over the same.
  function tell(left) {
    const told = ([name, { base }]) => [name, { base, text: entryOf(name)?.text ?? null }]
    tellNow?.("typed", { left: Object.fromEntries(left.map(told)), own, isNew: Date.now() - began < PATIENCE })
  }

  // What the server has not said to be kept is told again, more and more seldom, and what it asked for until it has it.
  // Not into a page that is being drawn, which would begin anew.
  setInterval(() => {
    const now = Date.now(), half = nameOf(isHalf(document.activeElement) && document.activeElement)
    for (const name of Object.keys(own)) if (!typed[name] && !(now - (keptAt[name] ??= now) < LONG)) delete own[name]
    if (!tellNow || isAway() || now - began < LATE || stateOf("testScriptState") !== "notRunning") return
    const left = mine().filter(([name, { next }]) => name !== half && now > next)
    for (const [, entry] of left) entry.next = now + Math.min(SELDOM, now - entry.at)
    if (left.length || asks) tell(left)
  }, AGAIN)

  function draw(data, newest) {
    tellNow = data.draft === null ? null : newest
    asks = data.asks // which texts are this window's own
    if (data.draft === null) return // a page without one
    draft = data.draft
    if (ownDraft && ownDraft !== draft) own = {}
    ownDraft = draft
    if (asks) setTimeout(() => tell([]))
    const left = mine() // before what is acknowledged is taken out
    for (const [name, value] of Object.entries(data.kept)) {
      const text = typed[name]?.text
      if (text === undefined || (typeof value === "number" ? Number(text) !== value : text !== value)) continue
      delete typed[name]
      keptAt[name] = Date.now()
    }
    remember()
    if (session === data.session) return
    session = data.session
    began = Date.now()
    if (!left.length) return
    keepHolding()
    setTimeout(() => tell(left), SETTLING) // once all is drawn, and what is shown has been committed
  }

  // The page with the component is left: nothing is told from another one.
  function leave(last) {
    if (tellNow === last) tellNow = null
  }

  return { draw, leave }
}
