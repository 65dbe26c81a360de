// How many inputs a fuzz test tries: few enough for every run by default, FERRY_FUZZ_INPUTS of them when somebody asks for more.

export function fuzzInputs(usual: number): number {
  return Number(process.env['FERRY_FUZZ_INPUTS'] ?? usual);
}

/** Milliseconds; an input takes well below one, on a quiet machine. */
export function patienceFor(inputs: number): number {
  return 300_000 + inputs * 20;
}
