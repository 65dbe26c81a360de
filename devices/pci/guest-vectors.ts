// What the guest has said about a function's message-signalled interrupts, MSI and MSI-X alike. Types only.
// Implemented by msi.ts and msix.ts; read by vector-binding.ts (emulated devices) and vfio's vectors.ts (passed-through ones).

export interface VectorMessage {
  readonly address: bigint;
  readonly data: number;
}

export interface GuestVectors {
  readonly count: number;
  /** The capability's enable bit. While off the function must not send messages, and none is kept pending. */
  readonly enabled: boolean;
  /** What the vector would send now; null while it is off or masked. */
  message(vector: number): VectorMessage | null;
  pending(vector: number): boolean;
  setPending(vector: number, on: boolean): void;
}

/** A vector whose message() may have changed. */
export type VectorChanged = (vector: number) => void;
