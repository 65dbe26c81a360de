// Implementation of region_fd.h.
#include "region_fd.h"

#include <cerrno>
#include <fcntl.h>
#include <unistd.h>

namespace ferry {

RegionFd::RegionFd(int fd) : fd_(fcntl(fd, F_DUPFD_CLOEXEC, 0)) {
  if (fd_ < 0) error_ = errno;
}

RegionFd::~RegionFd() {
  if (fd_ >= 0) close(fd_);
}

ssize_t RegionFd::ReadAt(void* into, size_t length, uint64_t offset) const {
  for (;;) {
    ssize_t got = pread(fd_, into, length, static_cast<off_t>(offset));
    if (got >= 0 || errno != EINTR) return got < 0 ? -errno : got;
  }
}

ssize_t RegionFd::WriteAt(const void* from, size_t length, uint64_t offset) const {
  for (;;) {
    ssize_t put = pwrite(fd_, from, length, static_cast<off_t>(offset));
    if (put >= 0 || errno != EINTR) return put < 0 ? -errno : put;
  }
}

}  // namespace ferry
