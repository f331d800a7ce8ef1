// Keeps the page's moving pieces up to date without a run of its script: see pulse.py.
// One for each window. Streamlit calls this whenever `data` is another, and each call's end at some time, in whatever
// order while the script is still being fetched: it beats as long as one has not ended.
export default function ({ data, setTriggerValue }) {
  const pulse = (window.fluxgymPulse ??= { told: null, timer: 0, beats: false, alive: new Set() })
  const mine = {}
  pulse.alive.add(mine)
  pulse.data = data
  pulse.tell = setTriggerValue

  async function beat() {
    clearTimeout(pulse.timer)
    let seconds = 5
    const places = [...document.querySelectorAll("[data-fg-piece]")]
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
    const query = new URLSearchParams({ page: pulse.data.page, name: pulse.data.name, zone })
    for (const key of new Set(places.map(place => place.dataset.fgPiece))) query.append("piece", key)
    try {
      const answer = await fetch(`pulse?${query}`, { cache: "no-store", signal: AbortSignal.timeout(10000) })
      if (answer.ok) {
        const said = await answer.json()
        seconds = document.hidden ? 5 : said.seconds
        for (const place of places) {
          const html = said.pieces[place.dataset.fgPiece]
          if (html === undefined || place.fgShown === html) continue
          place.innerHTML = html // the server's own words, escaped there
          place.fgShown = html
        }
        if (said.title && document.title !== said.title) document.title = said.title
        if (said.shape !== pulse.data.shape && said.shape !== pulse.told) {
          pulse.told = said.shape
          pulse.tell("moved", said.shape)
        }
      }
    } catch {
      // The server is away: Streamlit says so on the page.
    }
    if (pulse.beats) pulse.timer = setTimeout(beat, seconds * 1000)
  }

  if (!pulse.beats) {
    pulse.beats = true
    pulse.seen = () => document.hidden || beat()
    document.addEventListener("visibilitychange", pulse.seen)
    pulse.timer = setTimeout(beat, 300)
  }
  return () => {
    pulse.alive.delete(mine)
    if (pulse.alive.size) return
    pulse.beats = false
    clearTimeout(pulse.timer)
    document.removeEventListener("visibilitychange", pulse.seen)
  }
}
