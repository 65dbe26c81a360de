// See tracer_memory.h.
#include "tracer_memory.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>

namespace ferry {
namespace {

constexpr size_t kPage = 4096;

}  // namespace

ByteList ReadMemory(pid_t tid, uint64_t address, size_t length) {
  ByteList bytes(std::min(length, kPayload));
  size_t done = 0;
  while (done < bytes.size()) {
    iovec local = {bytes.data() + done, bytes.size() - done};
    iovec remote = {reinterpret_cast<void*>(address + done), bytes.size() - done};
    ssize_t got = process_vm_readv(tid, &local, 1, &remote, 1, 0);
    if (got > 0) {
      done += got;
      continue;
    }
    // A transfer that meets an unmapped page may have failed as a whole: up to the page's end it can be read.
    size_t rest = kPage - (address + done) % kPage;
    if (rest >= bytes.size() - done) break;
    local.iov_len = remote.iov_len = rest;
    got = process_vm_readv(tid, &local, 1, &remote, 1, 0);
    if (got <= 0) break;
    done += got;
  }
  bytes.resize(done);
  return bytes;
}

std::string ReadText(pid_t tid, uint64_t address) {
  std::string text;
  while (text.size() < PATH_MAX) {
    size_t step = kPage - (address + text.size()) % kPage;
    ByteList bytes = ReadMemory(tid, address + text.size(), std::min<size_t>(step, 256));
    if (bytes.empty()) return text;
    auto end = std::find(bytes.begin(), bytes.end(), 0);
    text.append(bytes.begin(), end);
    if (end != bytes.end()) return text;
  }
  return text;
}

ByteList ReadVector(pid_t tid, uint64_t vector, uint64_t count, size_t length) {
  ByteList bytes;
  ByteList raw = ReadMemory(tid, vector, std::min<uint64_t>(count, IOV_MAX) * sizeof(iovec));
  for (size_t i = 0; i + sizeof(iovec) <= raw.size() && bytes.size() < std::min(length, kPayload); i += sizeof(iovec)) {
    iovec each;
    memcpy(&each, raw.data() + i, sizeof each);
    size_t wanted = std::min(each.iov_len, std::min(length, kPayload) - bytes.size());
    ByteList part = ReadMemory(tid, reinterpret_cast<uint64_t>(each.iov_base), wanted);
    bytes.insert(bytes.end(), part.begin(), part.end());
    if (part.size() < wanted) break;
  }
  return bytes;
}

std::string LinkOf(pid_t tid, int fd) {
  std::string name = "/proc/" + std::to_string(tid) + "/fd/" + std::to_string(fd);
  char target[PATH_MAX];
  ssize_t length = readlink(name.c_str(), target, sizeof target);
  return length <= 0 ? std::string() : std::string(target, length);
}

std::vector<int> OpenFds(pid_t tid) {
  std::vector<int> fds;
  DIR* folder = opendir(("/proc/" + std::to_string(tid) + "/fd").c_str());
  if (folder == nullptr) return fds;
  while (dirent* entry = readdir(folder)) {
    if (entry->d_name[0] != '.') fds.push_back(atoi(entry->d_name));
  }
  closedir(folder);
  return fds;
}

}  // namespace ferry
