// Errors that a user sees: their type, and what their message must name.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

namespace sluice::test {

template <class Expected, class Body>
void expect_error(Body&& body, std::initializer_list<std::string> parts) {
  try {
    body();
  } catch (const Expected& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "the message lacks '" << part << "': " << error.what();
    }
    return;
  } catch (const std::exception& error) {
    FAIL() << "another error: " << error.what();
  }
  FAIL() << "no error";
}

}  // namespace sluice::test
