// A camera whose newest frame is looked at, one after the other. Knows neither server nor drawing.

const MOST_SIDE_PX = 1280; // of a frame that is sent
const JPEG_QUALITY = 0.9;

/** The camera in a video element. look: an async function of (blob, [width, height]). rate: called with frames per second. */
export class Camera {
  #stream = null;
  #times = [];

  constructor(video, { look, rate, ended }) {
    Object.assign(this, { video, look, rate, ended });
  }

  get runs() {
    return this.#stream !== null;
  }

  /** Ask for the camera, and look until `stop`. Raises what the browser says where there is none. */
  async start() {
    const wanted = { video: { facingMode: { ideal: "environment" }, width: { ideal: 1280 } }, audio: false };
    if (!navigator.mediaDevices) throw new Error("a camera needs https or localhost");
    const stream = await navigator.mediaDevices.getUserMedia(wanted);
    this.#stream = stream;
    this.#times = [];
    this.video.srcObject = stream;
    stream.getVideoTracks()[0].addEventListener("ended", () => this.stop());
    await this.video.play();
    this.#run(stream);
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.video.srcObject = null;
    this.ended();
  }

  /** The frame that is shown now, as a JPEG file. */
  async frame() {
    const { videoWidth, videoHeight } = this.video;
    const scale = Math.min(1, MOST_SIDE_PX / Math.max(videoWidth, videoHeight));
    const canvas = new OffscreenCanvas(Math.round(videoWidth * scale), Math.round(videoHeight * scale));
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    return canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
  }

  async #run(stream) {
    while (this.#stream === stream) {
      // A hidden page looks at nothing.
      await new Promise((next) => (document.hidden ? setTimeout(next, 250) : requestAnimationFrame(next)));
      if (document.hidden || !this.video.videoWidth || this.#stream !== stream) continue;
      const looked = await this.look(await this.frame());
      if (looked && this.#stream === stream) this.#count();
      if (!looked) await new Promise((next) => setTimeout(next, 500));
    }
  }

  #count() {
    const now = performance.now();
    this.#times = [...this.#times.filter((time) => now - time < 2000), now];
    const span = now - this.#times[0];
    this.rate(span > 0 ? (1000 * (this.#times.length - 1)) / span : 0);
  }
}
