#include "serve/request/byte_range.h"

#include <gtest/gtest.h>

#include <string>

#include "serve/request/api_error.h"

namespace calibatt::serve {
namespace {

/// "offset+length", "all", or the status of the refusal; of 100 bytes.
std::string range(const std::string& header, uint64_t size = 100) {
  try {
    const std::optional<ByteRange> range = byte_range(header, size);
    return range ? std::to_string(range->offset) + "+" + std::to_string(range->length) : "all";
  } catch (const ApiError& error) {
    return std::to_string(error.status);
  }
}

TEST(ByteRange, ReadsWhatClientsSend) {
  EXPECT_EQ(range("bytes=0-9"), "0+10");
  EXPECT_EQ(range("bytes=0-"), "0+100");
  EXPECT_EQ(range("bytes=99-"), "99+1");
  EXPECT_EQ(range("bytes=90-1000"), "90+10");
  EXPECT_EQ(range("bytes=-10"), "90+10");
  EXPECT_EQ(range("bytes=-1000"), "0+100");
}

TEST(ByteRange, RefusesWhatBeginsBehindTheEnd) {
  EXPECT_EQ(range("bytes=100-"), "416");
  EXPECT_EQ(range("bytes=100-200"), "416");
  EXPECT_EQ(range("bytes=-0"), "416");
  EXPECT_EQ(range("bytes=0-", 0), "416");
}

TEST(ByteRange, AnythingElseIsForTheWhole) {
  for (const char* header : {"", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=9-1", "bytes=0-1,5-6", "lines=1-2",
                             "bytes=0x1-2", "bytes=1-2-3", "bytes=99999999999999999999-", "bytes=+1-2"}) {
    EXPECT_EQ(range(header), "all") << header;
  }
}

}  // namespace
}  // namespace calibatt::serve
