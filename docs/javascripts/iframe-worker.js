// Search in a site that is opened from a folder. Browsers refuse to start a worker there, so a hidden
// iframe runs the worker's script, and messages are events.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      this.frame.srcdoc =
        "<script>self.postMessage = (data) => frameElement.answer(data)</script>" +
        `<script src="${script}"></script>`
      this.loaded = new Promise((resolve) => this.frame.addEventListener("load", resolve))
      document.body.append(this.frame)
    }

    postMessage(data) {
      this.loaded.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })),
      )
    }

    terminate() {
      this.frame.remove()
    }
  }
}
