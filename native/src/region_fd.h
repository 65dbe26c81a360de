// A device fd whose regions lie at offsets of their own (linux/vfio.h, struct vfio_region_info.offset): pread and pwrite on a duplicate, so
// that a close() of JS meanwhile cannot turn an access into one of a stranger's file. Any thread; a call may block in a driver.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace ferry {

class RegionFd {
 public:
  explicit RegionFd(int fd);
  ~RegionFd();
  RegionFd(const RegionFd&) = delete;
  RegionFd& operator=(const RegionFd&) = delete;
  /** errno of the constructor, 0 when it is usable. */
  int error() const { return error_; }
  /** One pread(2) (pwrite), again after EINTR. What it took, or the negative errno. `offset` is below 2^63. */
  ssize_t ReadAt(void* into, size_t length, uint64_t offset) const;
  ssize_t WriteAt(const void* from, size_t length, uint64_t offset) const;

 private:
  int fd_;
  int error_ = 0;
};

}  // namespace ferry
