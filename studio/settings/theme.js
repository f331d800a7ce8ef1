// What theme this browser has kept, told to the page; and another one, kept. Streamlit keeps it by page, under a key of
// its own; the choice here holds for all of them.
export default function ({ data, setStateValue }) {
  const base = location.pathname.replace(/[^/]*$/, "")
  const key = page => `stActiveTheme-${base}${page}-v2`
  let kept = "System"
  try {
    kept = JSON.parse(localStorage.getItem(key("settings"))) ?? kept
  } catch { /* not Streamlit's: as if nothing was kept */ }
  if (data.known === null) {
    setStateValue("kept", kept)
  } else if (data.chosen && data.chosen !== kept) {
    for (const page of data.pages) {
      if (data.chosen === "System") localStorage.removeItem(key(page))
      else localStorage.setItem(key(page), JSON.stringify(data.chosen))
    }
    location.reload()
  }
}
