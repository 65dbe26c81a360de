// A Uint8Array of JS and the copy of it that the kernel or a native thread works on: nothing that JS may free, move or transfer is ever
// in their hands. Made and copied back on the JS thread; the copy itself may be worked on by any thread in between.
#pragma once
#include <napi.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "errors.h"

namespace ferry {

/** Only an async call needs a reference to the array (Keep); a handle is cheaper. */
struct CopiedBytes {
  Napi::Uint8Array array;
  Napi::Reference<Napi::Uint8Array> reference;
  std::vector<uint8_t> copy;

  CopiedBytes() = default;
  CopiedBytes(const Napi::Value& value, const Bytes& bytes)
      : array(value.As<Napi::Uint8Array>()), copy(bytes.data, bytes.data + bytes.length) {}
  void Keep() {
    if (!array.IsEmpty()) reference = Napi::Persistent(array);
  }
  /** An array that was detached meanwhile has no length and is left alone. */
  void CopyBack() { CopyBack(copy.size()); }
  /** Only the first `most` bytes: as many as the kernel says that it wrote. */
  void CopyBack(size_t most) {
    Napi::Uint8Array into = reference.IsEmpty() ? array : reference.Value();
    size_t length = std::min({into.ByteLength(), copy.size(), most});
    if (length > 0) memcpy(into.Data(), copy.data(), length);
  }
};

}  // namespace ferry
