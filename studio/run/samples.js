// A click on a sample opens it large in the page: see samples.py. With a key held it opens as any other link does.
export default function ({ setTriggerValue }) {
  function clicked(event) {
    const link = event.target.closest?.(".fg-pic a")
    if (!link || link.closest(".fg-large") || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return
    event.preventDefault()
    setTriggerValue("asked", link.getAttribute("href"))
  }
  document.addEventListener("click", clicked)
  return () => document.removeEventListener("click", clicked)
}
