rule miner_pool_address
{
    meta:
        description = "The address of a pool that miners of cryptocurrency work for"
    strings:
        $scheme = /stratum[12]?\+(tcp|ssl|tls|udp):\/\/[a-zA-Z0-9._-]{3,253}:[0-9]{2,5}/
    condition:
        any of them
}

rule miner_program
{
    meta:
        description = "A program that mines cryptocurrency, or its configuration"
    strings:
        $name1 = "xmrig" nocase
        $name2 = "minerd" fullword
        $name3 = "cpuminer" nocase
        $name4 = "xmr-stak" nocase
        $name5 = "ethminer" nocase
        $name6 = "nbminer" nocase
        $work1 = "donate-level"
        $work2 = "mining.subscribe"
        $work3 = "mining.authorize"
        $work4 = "randomx" nocase
        $work5 = "cryptonight" nocase
        $work6 = "\"coin\"" nocase
        $work7 = "nicehash" nocase
        $work8 = "rx/0"
        $web1 = "CoinHive.Anonymous("
        $web2 = "coinhive.min.js"
        $web3 = "CryptoLoot.Anonymous("
    condition:
        any of ($web*) or (any of ($name*) and 2 of ($work*)) or 4 of ($work*)
}
