// Rule: frames come out as they went in, however the stream was cut; a length that cannot be ours ends the connection.
import { describe, expect, it } from 'vitest';
import { FRAME, FrameReader, frame } from '../../../lab/frames.ts';

describe('frames', () => {
  it('come out whole, in order and exact for every size of piece', () => {
    const payloads = [Buffer.alloc(0), Buffer.from('x'), Buffer.alloc(70_000, 7), Buffer.from('last')];
    const stream = Buffer.concat(payloads.map((each, index) => frame(index, each)));
    for (const piece of [1, 2, 4, 5, 6, 1000, 65_536, stream.length]) {
      const reader = new FrameReader();
      const got: { type: number; payload: Buffer }[] = [];
      for (let at = 0; at < stream.length; at += piece) {
        reader.push(stream.subarray(at, at + piece), (type, payload) =>
          got.push({ type, payload: Buffer.from(payload) }),
        );
      }
      expect(got.map((each) => each.type)).toEqual([0, 1, 2, 3]);
      for (const [index, each] of got.entries()) expect(each.payload.equals(payloads[index]!)).toBe(true);
    }
  });

  it('refuse a length beyond any of ours', () => {
    const bytes = Buffer.from([FRAME.stdout, 0xff, 0xff, 0xff, 0xff]);
    expect(() => new FrameReader().push(bytes, () => {})).toThrow(/a frame of 4294967295 bytes/);
  });
});
