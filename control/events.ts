// QMP events with their time stamps, and who hears them. Owned by VmSession.

export interface QmpEvent {
  readonly event: string;
  readonly data?: object;
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

export class EventBus {
  readonly #listeners = new Set<(event: QmpEvent) => void>();

  listen(listener: (event: QmpEvent) => void): { remove(): void } {
    this.#listeners.add(listener);
    return { remove: () => this.#listeners.delete(listener) };
  }

  emit(event: string, data?: object): void {
    const now = Date.now();
    const stamp = { seconds: Math.floor(now / 1000), microseconds: (now % 1000) * 1000 };
    const message: QmpEvent = data === undefined ? { event, timestamp: stamp } : { event, data, timestamp: stamp };
    for (const listener of this.#listeners) listener(message);
  }
}
