from nftrust.storage.migrate import run_environment

run_environment()
